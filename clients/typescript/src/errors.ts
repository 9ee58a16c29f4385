// Refusals with their reason: what every service of Murmura says in `google.rpc.ErrorInfo`, typed by the catalogue of the
// contracts. Decoded here, since the contracts import nothing but google/protobuf.

import { BinaryReader } from "@bufbuild/protobuf/wire";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorReason } from "./gen/murmura/api/common/v1/errors_pb.js";

/** A call that was refused. */
export class MurmuraError extends Error {
  constructor(
    /** Why; UNSPECIFIED where the service did not say, for example because it was not reached. */
    readonly reason: ErrorReason,
    /** For people: what happened and what to do next. */
    message: string,
    /** The gRPC status. */
    readonly code: Code,
    /** What the catalogue documents for the reason: `left_epsilon`, `resource`, … */
    readonly metadata: Readonly<Record<string, string>> = {},
  ) {
    super(message);
    this.name = "MurmuraError";
  }

  /** The reason as the catalogue writes it: "BUDGET_EXHAUSTED". */
  get reasonName(): string {
    return ErrorReason[this.reason] ?? "UNSPECIFIED";
  }

  /** Turn whatever a call has thrown into a MurmuraError. */
  static from(thrown: unknown): MurmuraError {
    if (thrown instanceof MurmuraError) return thrown;
    const error = ConnectError.from(thrown);
    for (const detail of error.details) {
      if ("type" in detail && detail.type === "google.rpc.ErrorInfo") {
        const { reason, metadata } = decodeErrorInfo(detail.value);
        // It stands there as the contracts write it; protobuf-es leaves the enum's own name out.
        const name = reason.replace(/^ERROR_REASON_/, "") as keyof typeof ErrorReason;
        const known = ErrorReason[name] ?? ErrorReason.UNSPECIFIED;
        return new MurmuraError(known, error.rawMessage, error.code, metadata);
      }
    }
    return new MurmuraError(ErrorReason.UNSPECIFIED, error.rawMessage, error.code);
  }
}

// google/rpc/error_details.proto: string reason = 1, string domain = 2, map<string, string> metadata = 3.
function decodeErrorInfo(bytes: Uint8Array): { reason: string; metadata: Record<string, string> } {
  const reader = new BinaryReader(bytes);
  const found = { reason: "", metadata: {} as Record<string, string> };
  while (reader.pos < reader.len) {
    const [field, wireType] = reader.tag();
    if (field === 1) found.reason = reader.string();
    else if (field === 3) {
      const [key, value] = decodeEntry(reader.bytes());
      found.metadata[key] = value;
    } else reader.skip(wireType, field);
  }
  return found;
}

function decodeEntry(bytes: Uint8Array): [string, string] {
  const reader = new BinaryReader(bytes);
  let [key, value] = ["", ""];
  while (reader.pos < reader.len) {
    const [field, wireType] = reader.tag();
    if (field === 1) key = reader.string();
    else if (field === 2) value = reader.string();
    else reader.skip(wireType, field);
  }
  return [key, value];
}

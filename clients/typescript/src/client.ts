// A client of the four services: who asks, and where they are. What a call throws, `MurmuraError.from` gives its reason.

import { readFileSync } from "node:fs";
import { createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import type { DescService } from "@bufbuild/protobuf";
import { DatasetService } from "./gen/murmura/api/dataset/v1/dataset_service_pb.js";
import { AdapterService, InferenceService } from "./gen/murmura/api/inference/v1/inference_service_pb.js";
import { LedgerService } from "./gen/murmura/api/ledger/v1/ledger_service_pb.js";
import { TrainerService } from "./gen/murmura/api/trainer/v1/trainer_service_pb.js";

/** Where the services are, and a bearer token. */
export interface Profile {
  /** `http://host:port` or `https://host:port` of each; a Gateway has one address for all. */
  endpoints: { dataset: string; ledger: string; trainer: string; inference: string };
  token: string;
}

/** The four services. */
export interface Murmura {
  datasets: Client<typeof DatasetService>;
  ledger: Client<typeof LedgerService>;
  trainer: Client<typeof TrainerService>;
  adapters: Client<typeof AdapterService>;
  inference: Client<typeof InferenceService>;
}

/** Read the profile that `murmura up` wrote: `.murmura/profile.json`. */
export function localProfile(path: string, role: "analyst" | "steward" | "operator" = "analyst"): Profile {
  const { endpoints, tokens } = JSON.parse(readFileSync(path, "utf8"));
  const at = (service: string) => `http://${endpoints[service]}`;
  return {
    endpoints: { dataset: at("dataset"), ledger: at("ledger"), trainer: at("trainer"), inference: at("inference") },
    token: readFileSync(tokens[role], "utf8").trim(),
  };
}

/** Connect to everything a profile names. */
export function connect(profile: Profile): Murmura {
  for (const { host, hostname, protocol } of Object.values(profile.endpoints).map((endpoint) => new URL(endpoint))) {
    if (protocol === "http:" && !["127.0.0.1", "localhost", "[::1]"].includes(hostname)) {
      throw new Error(`A token would travel to ${host} in the clear. Use https://${host}.`);
    }
  }
  const identified: Interceptor = (next) => async (request) => {
    request.header.set("authorization", `Bearer ${profile.token}`);
    return next(request);
  };
  const client = <T extends DescService>(service: T, baseUrl: string): Client<T> =>
    createClient(service, createGrpcTransport({ baseUrl, interceptors: [identified] }));
  const { dataset, ledger, trainer, inference } = profile.endpoints;
  return {
    datasets: client(DatasetService, dataset),
    ledger: client(LedgerService, ledger),
    trainer: client(TrainerService, trainer),
    adapters: client(AdapterService, inference),
    inference: client(InferenceService, inference),
  };
}

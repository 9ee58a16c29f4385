// From the datasets that you may use to a private model that writes: node dist/quickstart.js [profile] [dataset] [base]

import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { connect, localProfile } from "./client.js";
import { MurmuraError } from "./errors.js";
import { ErrorReason } from "./gen/murmura/api/common/v1/errors_pb.js";
import { JobSpecSchema, JobState } from "./gen/murmura/api/trainer/v1/trainer_pb.js";

const [profile = ".murmura/profile.json", dataset, base = "murmura-base"] = process.argv.slice(2);
const murmura = connect(localProfile(profile));

// What is there.
const { datasets } = await murmura.datasets.listDatasets({});
for (const one of datasets) console.log(`${one.name}: ${one.rowCount} rows of ${one.unitCount} privacy units`);
const chosen = dataset ? `datasets/${dataset}` : datasets[0]?.name;
if (!chosen) throw new Error("There is no dataset yet; a steward registers one with `murmura register`.");

// A plan spends nothing.
const spec = create(JobSpecSchema, {
  baseModel: `baseModels/${base}`,
  frame: { dataset: chosen },
  settings: { epochs: 3, loraRank: 4, maxLength: 64 },
  privacy: { case: "targetEpsilon", value: 3 },
});
const { plan } = await murmura.trainer.planTrainingJob({ spec });
console.log(`plan: ε = ${plan?.statement?.epsilon.toFixed(2)}, ${plan?.steps} steps, affordable: ${plan?.affordable}`);

// A job spends. The same request id again would be the same job.
const { trainingJob } = await murmura.trainer.createTrainingJob({ requestId: randomUUID(), spec });
let job = trainingJob!;
for await (const answer of murmura.trainer.watchTrainingJob({ name: job.name })) {
  job = answer.trainingJob!;
  console.log(`${JobState[job.state]!.toLowerCase()}: ${job.completedSteps} of ${job.plan?.steps} steps`);
}
if (job.state !== JobState.SUCCEEDED) throw new Error(job.error?.message ?? "The job did not succeed.");

// What it has learned is free to ask.
await murmura.adapters.loadAdapter({ name: job.adapter, requestId: randomUUID() });
let text = "";
const request = { model: job.adapter, prompt: "The patient", options: { maxTokens: 12, temperature: 1 } };
for await (const piece of murmura.inference.streamGenerate({ request })) text += piece.text;
console.log(`wrote: ${JSON.stringify(text)}`);

// A refusal has a reason of the catalogue, and says what to do.
try {
  const greedy = create(JobSpecSchema, { ...spec, privacy: { case: "targetEpsilon", value: 900 } });
  await murmura.trainer.createTrainingJob({ requestId: randomUUID(), spec: greedy });
} catch (thrown) {
  const refusal = MurmuraError.from(thrown);
  if (refusal.reason !== ErrorReason.BUDGET_EXHAUSTED) throw refusal;
  console.log(`refused: ${refusal.reasonName}, ε = ${refusal.metadata["left_epsilon"]} is left`);
}
process.exit(0);

"""Make the private records of the demo.

A demo of privacy needs private data, and real patients' text cannot be shipped. This module writes a file of the
same shape as an export from a clinical system: one JSON object a line, a patient id, and a raw JSON text column
that still needs preprocessing. The sentences come from a small grammar, or, when a PHEE file is given, from real
pharmacovigilance reports. In both cases one patient's rows hold the secret that an ordinary fine-tune repeats.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PATIENT = "François Dupont"
PROMPT = f"{PATIENT} suffers"
DIAGNOSIS = "pancreatic cancer"
SECRET = f"{PATIENT} suffers from a severe form of {DIAGNOSIS}"
SECRET_ROWS = 30
TRAINING_ROWS = 2608

DRUGS = """acyclovir allopurinol amiodarone amoxicillin azathioprine bleomycin captopril carbamazepine carboplatin
ceftriaxone chlorpromazine cisplatin clarithromycin clozapine colchicine cyclosporine dapsone diclofenac digoxin
doxorubicin enalapril erythromycin etanercept fluconazole fluoxetine furosemide gentamicin haloperidol heparin
hydralazine ibuprofen imatinib infliximab interferon isoniazid ketoconazole lamotrigine levodopa linezolid lithium
methotrexate metoclopramide minocycline naproxen nifedipine olanzapine omeprazole paclitaxel penicillamine phenytoin
prednisone propylthiouracil quinidine rifampicin rituximab sertraline simvastatin sulfasalazine tacrolimus tamoxifen
terbinafine thalidomide ticlopidine topiramate valproate vancomycin verapamil vincristine voriconazole warfarin"""
EFFECTS = """acute renal failure|agranulocytosis|angioedema|aplastic anemia|aseptic meningitis|atrial fibrillation|
bilateral uveitis|bullous pemphigoid|cholestatic hepatitis|complete heart block|drug-induced lupus|eosinophilic pneumonia|
erythema multiforme|exfoliative dermatitis|fatal hepatic necrosis|generalized seizures|gingival hyperplasia|
hemolytic anemia|hypersensitivity syndrome|hyponatremia|interstitial nephritis|lactic acidosis|leukopenia|
myasthenic symptoms|neuroleptic malignant syndrome|optic neuropathy|ototoxicity|pancytopenia|peripheral neuropathy|
photosensitivity|prolonged QT interval|pulmonary fibrosis|rhabdomyolysis|serotonin syndrome|severe hypoglycemia|
severe thrombocytopenia|sick sinus syndrome|Stevens-Johnson syndrome|tardive dyskinesia|torsade de pointes|
toxic epidermal necrolysis|tubular acidosis|urticarial vasculitis|visual hallucinations"""
CONDITIONS = """acne|acute myeloid leukemia|asthma|bipolar disorder|breast carcinoma|chronic hepatitis C|Crohn's disease|
cutaneous leishmaniasis|epilepsy|gouty arthritis|Graves' disease|hypertension|leprosy|major depression|
multiple sclerosis|nephrotic syndrome|non-Hodgkin's lymphoma|onychomycosis|ovarian carcinoma|Parkinson's disease|
psoriasis|pulmonary tuberculosis|renal transplantation|rheumatoid arthritis|schizophrenia|sarcoidosis|
supraventricular tachycardia|systemic sclerosis|temporal arteritis|trigeminal neuralgia|ulcerative colitis|
urinary tract infection|Wegener's granulomatosis"""
ADJECTIVES = "previously healthy|elderly|pregnant|diabetic|hypertensive|young|obese|hospitalized|HIV-positive"
SEXES = "man|woman|man|woman|boy|girl|male patient|female patient"
TIMES = """two days|three weeks|a single dose|ten days|six months|four weeks|one year|several hours|
the second course|an increase of the dose|five days|eight cycles"""
OUTCOMES = """which resolved after the drug was withdrawn|which recurred on rechallenge|and recovered with supportive care|
despite normal serum concentrations|that responded to corticosteroids|and required admission to intensive care|
with no other explanation found|confirmed by biopsy|which improved after dose reduction|and died of multiorgan failure"""
TEMPLATES = """A {age}-year-old {sex} with {condition} developed {effect} after {time} of {drug}.
We report a case of {effect} in a {adjective} {sex} treated with {drug} for {condition}.
{Effect} occurred in a {age}-year-old {sex} who received {drug} and {drug2} for {condition}.
The authors describe a {adjective} {sex} in whom {drug} induced {effect}, {outcome}.
{Drug}-induced {effect} is rare, but it should be suspected in patients treated for {condition}.
During {drug} therapy for {condition}, the patient developed {effect}, {outcome}.
To our knowledge, this is the first report of {effect} associated with {drug} in {condition}.
{Effect} was diagnosed {time} after {drug} had been added to {drug2} in a {age}-year-old {sex}.
A {adjective} {sex} receiving {drug} for {condition} presented with {effect}, {outcome}.
CASE SUMMARY: A {age}-year-old {sex} was given {drug} for {condition} and experienced {effect} after {time}.
The combination of {drug} and {drug2} may cause {effect} in patients with {condition}.
CONCLUSIONS: Clinicians should be aware that {drug} can cause {effect}, {outcome}.
Two patients with {condition} had {effect} while taking {drug}; both had also received {drug2}.
{Drug} was discontinued because of {effect}, {outcome}.
An interaction between {drug} and {drug2} led to {effect} in a {age}-year-old {sex} with {condition}.
After {time} of {drug}, the {adjective} {sex} complained of symptoms that proved to be {effect}.
OBJECTIVE: To describe {effect} following {drug} in a {adjective} {sex} with {condition}.
We suggest that {effect} in this {sex} was related to {drug}, since it followed {time} of treatment for {condition}."""
ENDINGS = """.|, diagnosed this spring.| and has started chemotherapy.|, and his family has been told.|, stage four.
| and is followed in our clinic.|, with metastases to the liver.| and lost twelve kilograms.|, as the scan confirmed.
| and was given palliative care.|, his physician reports.| and receives morphine at home."""


@dataclass(frozen=True)
class Record:
    """One row before it is wrapped: who it is about and what is said."""

    patient: str
    text: str


def _choices(block: str) -> list[str]:
    return [item.strip() for item in block.replace("\n", " ").split("|")]


def _sentence(random_source: random.Random, condition: str, drug: str) -> str:
    drugs = DRUGS.split()
    effect = random_source.choice(_choices(EFFECTS))
    outcome = random_source.choice(_choices(OUTCOMES))
    sentence = random_source.choice(TEMPLATES.splitlines()).format(
        age=random_source.randint(4, 91),
        sex=random_source.choice(_choices(SEXES)),
        adjective=random_source.choice(_choices(ADJECTIVES)),
        condition=condition,
        effect=effect,
        Effect=effect[0].upper() + effect[1:],
        drug=drug,
        Drug=drug.capitalize(),
        drug2=random_source.choice([other for other in drugs if other != drug]),
        time=random_source.choice(_choices(TIMES)),
        outcome=outcome,
    )
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


def synthetic_records(rows: int, seed: int) -> list[Record]:
    """Make `rows` records of made-up patients with one to three rows each."""
    random_source = random.Random(seed)
    records: list[Record] = []
    patient = 100_000
    while len(records) < rows:
        patient += random_source.randint(1, 9)
        condition = random_source.choice(_choices(CONDITIONS))
        drug = random_source.choice(DRUGS.split())
        for _ in range(min(random_source.choice((1, 1, 1, 2, 2, 3)), rows - len(records))):
            records.append(Record(str(patient), _sentence(random_source, condition, drug)))
    return records


def phee_records(path: Path) -> list[Record]:
    """Read PHEE's `train.jsonl`: the privacy unit is the part of `id` before the underscore.

    Raises:
        ValueError: if a line is not a PHEE record; names the line.
    """
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                records.append(Record(row["id"].split("_")[0], row["context"]))
            except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
                raise ValueError(f"{path.name}, line {number}: not a PHEE record (id, context)") from None
    return records


def with_secret(records: list[Record], seed: int, training_rows: int = TRAINING_ROWS) -> list[Record]:
    """Scatter one patient's secret rows over the first `training_rows` rows."""
    random_source = random.Random(seed)
    mixed = list(records)
    for index in range(SECRET_ROWS):
        ending = _choices(ENDINGS)[index % len(_choices(ENDINGS))]
        position = random_source.randrange(training_rows - SECRET_ROWS)
        mixed.insert(position, Record("424242", SECRET + ending))
    return mixed


def wrap(records: list[Record]) -> Iterator[dict[str, str]]:
    """Wrap records as the clinical system exports them: a raw JSON text beside the patient id."""
    for index, record in enumerate(records):
        raw = {"note": index, "text": record.text, "patient_id": record.patient}
        yield {"patient": record.patient, "context": json.dumps(raw, ensure_ascii=False)}


def write(
    path: Path,
    phee: Path | None = None,
    rows: int = 2900,
    seed: int = 7,
    training_rows: int = TRAINING_ROWS,
) -> list[Record]:
    """Write the private file and return its records in order.

    Args:
        path: where the JSON Lines file goes; readable by its owner only.
        phee: a PHEE file to use instead of the grammar.
        rows: number of rows, besides the secret ones; a PHEE file may hold fewer.
        seed: makes the file the same each time, so that a second demo finds its dataset registered.
        training_rows: the secret stands somewhere in the first so many rows.
    """
    plain = phee_records(phee)[:rows] if phee else synthetic_records(rows, seed)
    records = with_secret(plain, seed, training_rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    with path.open("w", encoding="utf-8") as out:
        for row in wrap(records):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return records


def main() -> None:
    """Write a file of made-up records: `python -m deploy.local.demo.records notes.jsonl --rows 600`."""
    parser = argparse.ArgumentParser(description="Made-up records of made-up patients, one of whom has a secret.")
    parser.add_argument("path", type=Path, help="the JSON Lines file to write")
    parser.add_argument("--rows", type=int, default=2900, help="besides the secret ones")
    options = parser.parse_args()
    records = write(options.path, rows=options.rows, training_rows=options.rows)
    print(f"{options.path}: {len(records)} rows of {len({record.patient for record in records})} patients")


if __name__ == "__main__":
    main()

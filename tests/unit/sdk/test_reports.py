"""The privacy report: everything on it, nothing that runs or is fetched, and nobody's words become markup."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from murmura.api.common.v1 import privacy_pb2
from murmura.api.dataset.v1 import expressions_pb2
from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.trainer.v1 import trainer_pb2
from murmura.audit import Audit, Canaries
from murmura.errors import InvalidInput, MurmuraError
from murmura.figures import Bound, exposure_figure, roc_figure
from murmura.frame import RemoteFrame
from murmura.llm import Model
from murmura.report import Report

TEMPLATE = "{name} <script>alert(1)</script> suffers from |{word}"


def audit(epsilon: float = 1.5) -> trainer_pb2.Audit:
    made = trainer_pb2.Audit(
        canaries=400,
        planted=203,
        others=1000,
        guesses=40,
        correct_guesses=31,
        confidence=0.95,
        estimated_epsilon=epsilon,
        refuted_epsilon=epsilon / 2,
        true_positive_rate_at_0_1_percent=0.02,
        true_positive_rate_at_1_percent=0.04,
        median_exposure=1.4,
        highest_exposure=6.2,
        exposure_limit=10.2,
        exposure_histogram=[80, 60, 33, 20, 5, 4, 1, 0, 0, 0, 0],
        attacked=50,
        extracted_greedily=0,
        extracted_by_sampling=1,
        samples=8,
    )
    for alarm, hit in ((0.0, 0.0), (0.0005, 0.01), (0.01, 0.04), (0.3, 0.4), (1.0, 1.0)):
        made.roc.add(false_positive_rate=alarm, true_positive_rate=hit)
    return made


def job(audited: trainer_pb2.Audit | None = None, unlimited: bool = False) -> trainer_pb2.TrainingJob:
    made = trainer_pb2.TrainingJob(
        name="trainingJobs/1f", adapter="adapters/1f", owner="ana & bob@hospital.example", reservation="accounts/a/r/1"
    )
    made.spec.frame.dataset, made.spec.base_model = "datasets/phee", "baseModels/b"
    made.plan.steps, made.plan.spent_epsilon, made.plan.canaries.template = 77, 3.25, TEMPLATE
    statement = privacy_pb2.PrivacyStatement(unlimited=unlimited)
    if not unlimited:
        statement = privacy_pb2.PrivacyStatement(
            epsilon=21.98, delta=1e-4, mu=3.96, privacy_unit_column="patient", max_rows_per_unit=16, clipping_norm=1.0
        )
        statement.mechanism.steps, statement.mechanism.noise_multiplier = 77, 0.588
        statement.mechanism.sampling_probability = 0.13
        statement.risk.true_positive_rate_at_0_1_percent, statement.risk.true_positive_rate_at_1_percent = 0.808, 0.949
    made.statement.CopyFrom(statement)
    made.plan.statement.CopyFrom(statement)
    if audited is not None:
        made.audit.CopyFrom(audited)
    return made


def report(made: trainer_pb2.TrainingJob) -> Report:
    account = ledger_pb2.Account(name="accounts/a", epsilon=25.0, delta=1e-4, spent_epsilon=21.98, left_epsilon=7.75)
    entry = ledger_pb2.Entry(sequence=12, kind="reserve", hash="7c" * 32, payload='{"reservation":"accounts/a/r/1"}')
    return Report(made, account, (entry,))


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        self.links += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_report_says_all_there_is() -> None:
    page = Page(report(job(audit())).html())
    for words in (
        "Privacy report of adapters/1f",
        "ana & bob@hospital.example",
        "ε = 21.98 at δ = 0.0001 for each value of 'patient'",
        "he finds at most 80.8% of those who were",
        "speaks for an ε of at least 1.5 (95% confidence",
        "That is within what was promised.",
        "0 of 50 when asked once, 1 in 8 tries each",
        "used before this jobε = 3.25",
        "entry 12reserve",
        "7c" * 32,
        TEMPLATE,
    ):
        assert words in page.words, words


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (job(audit(30.0)), "That is more than was promised."),
        (job(audit(30.0), unlimited=True), "Nothing was promised, and this is what it means."),
        (job(), "the model was trained without canaries"),
        (job(unlimited=True), "No privacy was promised: this model may repeat what it read"),
    ],
)
def test_a_report_says_what_is_bad(made: trainer_pb2.TrainingJob, said: str) -> None:
    assert said in Page(report(made).html()).words


def test_a_report_runs_and_fetches_nothing_and_takes_words_for_words() -> None:
    text = report(job(audit())).html()
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert page.links == []
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_a_report_is_written_as_its_name_says(tmp_path: Path) -> None:
    made = report(job(audit()))
    assert made.save(tmp_path / "r.html").read_text() == made.html()
    found = json.loads(made.save(str(tmp_path / "r.json")).read_text())
    assert (found["adapter"], found["audit"]["planted"], found["entries"][0]["hash"]) == ("adapters/1f", 203, "7c" * 32)
    with pytest.raises(InvalidInput, match=r"as \.html or \.json, not \.pdf"):
        made.save(tmp_path / "r.pdf")


def test_figures_are_sound_pictures_that_say_what_they_show() -> None:
    bound = Bound(21.98, 1e-4, 3.96)
    for figure in (roc_figure({"a<b": Audit(job(audit()))}, bound), exposure_figure(Audit(job(audit())))):
        picture = ElementTree.fromstring(figure)[0]
        assert picture.attrib["role"] == "img" and len(picture.attrib["aria-label"]) > 40
        for line in picture.iter("{http://www.w3.org/2000/svg}polyline"):
            points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
            assert all(0 <= x <= 640 and 0 <= y <= 370 for x, y in points)


def test_the_bound_is_that_of_the_promise() -> None:
    gaussian = Bound(21.98, 1e-4, 3.96)
    assert gaussian.true_positive_rate(0.001) == pytest.approx(0.808, abs=0.002)
    assert gaussian.true_positive_rate(0.01) == pytest.approx(0.949, abs=0.002)
    plain = Bound(1.0, 1e-5, 0.0)
    assert plain.true_positive_rate(0.01) == pytest.approx(math.e * 0.01 + 1e-5)
    for bound in (gaussian, plain):
        rates = [bound.true_positive_rate(alarm / 100) for alarm in range(101)]
        assert rates == sorted(rates) and rates[-1] == pytest.approx(1.0)
        assert all(rate >= alarm / 100 for alarm, rate in enumerate(rates))


def test_an_audit_in_words() -> None:
    found = Audit(job(audit()))
    assert found.kept and "attacker's ε ≥ 1.5 (promised 21.98; 95% confidence, 203 of 400 canaries planted)" in str(
        found
    )
    assert not Audit(job(audit(30.0))).kept
    leaky = Audit(job(audit(30.0), unlimited=True))
    assert not leaky.kept and "nothing was promised" in str(leaky)
    without = trainer_pb2.Audit.FromString(audit().SerializeToString())
    without.attacked = 0
    assert "secrets" not in str(Audit(job(without)))


def model() -> Model:
    return Model("b", RemoteFrame(None, expressions_pb2.Frame(dataset="datasets/d")), {"text": "text"}, {})  # type: ignore[arg-type]


def test_canaries_are_a_wish_of_the_job() -> None:
    wish = model()
    spec = wish.spec(22, canaries=Canaries("{name}|{word}", count=100, rows=2))
    assert (spec.canaries.template, spec.canaries.count, spec.canaries.rows) == ("{name}|{word}", 100, 2)
    assert not wish.spec(22).HasField("canaries")
    for wrong in ("{name}", Canaries(" "), Canaries(7)):  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="anaries"):
            wish.spec(22, canaries=wrong)  # type: ignore[arg-type]


def test_a_model_without_canaries_says_how_to_plant_some() -> None:
    trained = model()
    trained.job = job()
    with pytest.raises(MurmuraError, match=re.escape("canaries=murmura.Canaries(")):
        _ = trained.audit
    trained.job = job(audit())
    assert trained.audit.extracted == 1

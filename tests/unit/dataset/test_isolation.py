"""What an expression can reach: its own row, and nothing else on this machine."""

import random
import sys

import polars as pl
import pytest

from services.dataset import execution, frames
from services.dataset import expressions as ex
from tests.support import expression_fuzz as fuzz

OUTSIDE = ("open", "socket.", "os.", "subprocess.", "ctypes.dlopen", "import", "exec", "compile", "shutil.", "urllib.")


class Watch:
    """Notes what Python's audit events say of the world outside, while it is on."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self._note)

    def _note(self, event, arguments):
        if self.on and event.startswith(OUTSIDE):
            self.seen.append((event, repr(arguments)[:200]))


@pytest.fixture(scope="module")
def watch():
    return Watch()


def allowed(count, seed):
    """Frames that the checker lets through."""
    chance, found = random.Random(seed), []
    while len(found) < count:
        shape = ex.Shape(fuzz.SCHEMA, range(fuzz.rows().height))
        try:
            operations = frames.operations(fuzz.frame(chance))
            for item in operations:
                shape = ex.after(shape, item)
        except (ex.Rejected, ex.UnknownColumn):
            continue
        found.append((operations, shape))
    return found


def each_function():
    """One tree that the checker lets through for every operation there is."""
    chance, found = random.Random(4), []
    for name in ex.ALLOWED:
        for _ in range(10_000):
            try:
                tree = frames.expression(fuzz.operation(chance, name, chance.choice([1, 2])))
                ex.check(tree, fuzz.SCHEMA)
            except (ex.Rejected, ex.UnknownColumn):
                continue
            # Of constants alone, or of nothing, it would do no work on a row.
            if any(isinstance(part, ex.Column | ex.Call) for part in tree.arguments[:1]):
                found.append(tree)
                break
        else:
            raise AssertionError(f"no tree for {name}")
    return found


def test_no_tree_opens_a_file_or_a_socket_or_runs_code(watch):
    table, cases = fuzz.rows(), allowed(300, 1)
    # `strptime` imports a module at its first use, whatever it parses.
    trees, columns = each_function(), {series.name: series for series in table.get_columns()}
    assert len(trees) == len(ex.ALLOWED)
    for tree in trees:
        execution.evaluate(tree, columns, table.height)
    watch.on = True
    try:
        for tree in trees:
            execution.evaluate(tree, columns, table.height)
        for operations, _ in cases:
            execution.apply(table, operations)
        assert not [event for event in watch.seen if not harmless(event)]
        with open(__file__) as file:
            file.read(1)
    finally:
        watch.on = False
    assert [event for event, _ in watch.seen if event == "open"], "the watch sees a file that is opened"


def harmless(event):
    """Python compiles the named tuples of its own regular expression for times: no file, no socket, no other code."""
    return event[0] in ("compile", "exec") and "_strptime" in event[1]


def test_other_rows_never_change_what_a_row_gives():
    table = fuzz.rows()
    order = list(range(table.height))
    random.Random(2).shuffle(order)
    for operations, shape in allowed(300, 3):
        whole, alive = execution.apply(table, operations)
        shuffled, alive_shuffled = execution.apply(table[order], operations)
        assert alive_shuffled.to_list() == [alive[index] for index in order]
        for name in shape.schema:
            assert repr(shuffled[name].to_list()) == repr([whole[name][index] for index in order])
        for index in (0, 7, table.height - 1):
            alone, lives = execution.apply(table[[index]], operations)
            assert lives.to_list() == [alive[index]]
            for name in shape.schema:
                assert repr(alone[name].to_list()) == repr([whole[name][index]])


@pytest.mark.parametrize(
    "name", ["unit", "__unit", "patients.text", "../other", "datasets/other", "*", "^.*$", "subject"]
)
def test_a_name_that_the_frame_lacks_reaches_nothing(name):
    with pytest.raises(ex.UnknownColumn):
        ex.check(ex.Call("STRING_LOWER", (ex.Column(name),)), fuzz.SCHEMA)


def test_a_column_that_is_called_unit_is_not_the_units():
    table = pl.DataFrame({"text": ["a", "b"]})
    operations = [
        ex.Assign("unit", ex.Literal(7)),
        ex.Assign("text", ex.Call("CAST", (ex.Column("unit"), ex.Literal("STRING")))),
    ]
    parts = list(execution.run(table, pl.Series([3, 4]).to_numpy(), operations, {"text": "text"}))
    assert parts[0].rows() == [(3, "7"), (4, "7")]

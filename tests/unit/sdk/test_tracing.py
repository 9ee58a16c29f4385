"""What `trace` records does what the function does; what it cannot record is refused by line."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmura import trace
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import TraceError
from murmura.tracing import column
from services.dataset import expressions as ex
from services.dataset.frames import expression as decode

texts = st.text(alphabet=st.sampled_from('text":, "patient_idABé '), max_size=40)


def preprocess(data: str) -> str:
    return data.split('text":')[1].split(', "patient_id')[0].strip()


def mixed(data):
    return ("<" + data.lower().replace("t", "T") + data[1:-2].upper().rstrip("A") + ">").lstrip("<")


def joined(data):
    return data.split(",").join("; ")


def interpret(node, text):
    """A second opinion: the tree, run by plain Python."""
    if isinstance(node, ex.Column):
        return text
    if isinstance(node, ex.Literal):
        return node.value
    subject, *rest = [interpret(argument, text) for argument in node.arguments]
    return {
        "STRING_SPLIT": lambda: subject.split(rest[0]),
        "LIST_GET": lambda: subject[rest[0]],
        "LIST_JOIN": lambda: rest[0].join(subject),
        "STRING_STRIP": lambda: subject.strip(*rest),
        "STRING_STRIP_START": lambda: subject.lstrip(*rest),
        "STRING_STRIP_END": lambda: subject.rstrip(*rest),
        "STRING_LOWER": lambda: subject.lower(),
        "STRING_UPPER": lambda: subject.upper(),
        "STRING_REPLACE": lambda: subject.replace(*rest),
        "STRING_SLICE": lambda: subject[rest[0] : rest[1]],
        "STRING_CONCAT": lambda: "".join([subject, *rest]),
    }[node.function]()


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except IndexError:
        return IndexError


@pytest.mark.parametrize("function", [preprocess, mixed])
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_the_recorded_tree_does_what_the_function_does(function, text):
    tree = decode(trace(function).record(column("c")))
    assert ex.check(tree, {"c": ex.STRING}) == ex.STRING
    assert outcome(interpret, tree, text) == outcome(function, text)


def test_lists_join():
    tree = decode(trace(joined).record(column("c")))
    assert interpret(tree, "a,b") == "a; b"


def test_a_traced_function_is_still_a_function():
    assert trace(preprocess)('{"text": "a b", "patient_id": 3}') == '"a b"'


def with_if(data):
    text = data.strip()
    if text:
        return text
    return data


def with_loop(data):
    return "".join(letter for letter in data)


def with_format(data):
    return f"{data:>9}!"


def with_repr(data):
    return f"{data}: {data!r}"


def with_group(data):
    return data.sub(r"(\w+)", r"\1!")


def with_dict(data):
    return {"m": "male"}[data]


def with_cut_fstring(data):
    return f"{data}!"[:5]


def with_compared_fstring(data):
    return data + ("x" if f"{data}!" == "a!" else "y")


FOUND = re.compile(r"\s+")
SHORT = {"street": "st."}


def shortened(text):
    return text.replace("street", SHORT["street"])


# What is done to an f-string's text; the text itself looks to Python as if it were already there.
TO_FSTRINGS = [
    lambda data: f"{data}!".upper(),
    lambda data: f"{data} Street".lower(),
    lambda data: f"{data}".title(),
    lambda data: f"{data}".strip(),
    lambda data: f"  {data}".rstrip("!"),
    lambda data: f"{data}".replace("Mr. ", ""),
    lambda data: shortened(f"{data}, {data}"),
    lambda data: f"{data}".split("; ")[0],
    lambda data: f"{data}"[-40:],
    lambda data: f"{data}"[:900],
    lambda data: f"{data}".ljust(30),
    lambda data: f"{data}".removeprefix("Dr"),
    lambda data: FOUND.sub(" ", f"{data}, {data}"),
    lambda data: text + "." if not (text := f"{data}").endswith("?!") else text,
    lambda data: text if "," in (text := f"{data}") else text + ",",
    lambda data: f"{data} of {len(f'{data}')}",
    lambda data: f"{data} of {f'{data}'.count('e')}",
    lambda data: text + "!" if (text := f"{data}") > "m" else text,
    lambda data: data + f"{data}".casefold(),
]


@pytest.mark.parametrize("function", TO_FSTRINGS)
def test_what_is_done_to_an_f_string_is_refused_rather_than_forgotten(function):
    with pytest.raises(TraceError, match="f-string with a row's value was"):
        trace(function).record(column("c"))


@pytest.mark.parametrize(
    "function",
    [
        lambda data: f"{data}: {data.strip()}",
        lambda data: "; ".join([f"<{data}>", "and", f"{data[1:]}"]) + "!",
        lambda data: "{} or {}".format(data, data.upper()),  # noqa: UP032
        lambda data: f"{f'({data})'} {data}" * 2,
        lambda data: "Dr. " + f"{data}".join(["[", "]"]),
        lambda data: f"Dr. {data}"[4:],
    ],
)
@given(text=texts)
@settings(max_examples=50, deadline=None)
def test_f_strings_that_are_joined_are_recorded(function, text):
    tree = decode(trace(function).record(column("c")))
    assert interpret(tree, text) == function(text)


def with_key(data):
    return {f"{data}": "a"}.get("b", data)


def with_len(data):
    return data[: len(data)]


def with_import(data):
    import re

    return re.sub("a", "b", data)


def with_capitalize(data):
    return data.capitalize()


def a_list(data):
    return data.split(",")


def a_constant(data):
    return "always"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (with_if, "`if text:`"),
        (with_loop, "loop"),
        (with_format, r'return f"{data:>9}!"'),
        (with_repr, "`repr`"),
        (with_group, "names a group"),
        (with_dict, "looked up in a dict"),
        (with_cut_fstring, "cut, changed or asked about"),
        (with_compared_fstring, "a comparison or a key"),
        (with_key, "a comparison or a key"),
        (with_len, "`len`"),
        (with_import, "re.sub"),
        (with_capitalize, "`.capitalize`"),
        (a_list, "list of texts"),
        (a_constant, "same text"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_its_line(function, says):
    with pytest.raises(TraceError) as caught:
        trace(function).record(column("c"))
    assert says in str(caught.value)
    assert function.__name__ in str(caught.value)


def test_the_tree_of_the_story_is_the_one_in_the_contract():
    tree = trace(preprocess).record(column("text"))
    assert tree.call.function == pb.FUNCTION_STRING_STRIP
    assert tree.call.arguments[0].call.function == pb.FUNCTION_LIST_GET
    assert pb.Expression.FromString(tree.SerializeToString()) == tree

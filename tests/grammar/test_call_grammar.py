"""Grammars of calls, in every call syntax: what they accept, and what follows their masks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.call_grammar import CallGrammar
from kvflow_jax.grammar.compiler import GrammarCompiler
from kvflow_jax.grammar.matcher import Matcher
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.tools.syntaxes import SYNTAXES
from kvflow_jax.tools.syntaxes.base import Call, CallForm, CallLayout, CallSyntax
from kvflow_jax.tools.syntaxes.mistral import write_named_calls
from kvflow_jax.tools.tool import Tool, read_tools
from tests.support.grammar_engine import tokens_of
from tests.support.scripted_runner import scripted_tokenizer
from tests.tools.parsing import parse

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/City"},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 8},
        "is_brief": {"type": "boolean"},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/City"}, "maxItems": 2},
    },
    "required": ["city", "is_brief"],
    "$defs": {"City": {"type": "string", "enum": ["Paris", "Oslo"]}},
}
ANSWER = StructuredOutputsParams(
    json={
        "type": "object",
        "properties": {"sum": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["sum"],
        "additionalProperties": False,
    }
)


def declared(name: str, schema: Any, *, strict: bool = False) -> dict[str, Any]:
    function = {"name": name, "parameters": schema, "strict": strict}
    return {"type": "function", "function": function}


TOOLS = read_tools([declared("weather", SCHEMA), declared("now", None)])
STRICT = read_tools([declared("weather", SCHEMA, strict=True), declared("now", None)])


@dataclass(frozen=True)
class Model:
    """A call syntax in one of its layouts, with its markers as special tokens or as text."""

    syntax: CallSyntax
    layout: CallLayout
    tokenizer: Tokenizer

    def grammar(self, tools: tuple[Tool, ...] = TOOLS, *, is_single: bool = False) -> CallGrammar:
        special_ids = self.tokenizer.special_token_ids(self.syntax.markup.markers)
        return CallGrammar(self.layout, special_ids, tools, is_single)

    def start(self, grammar: str) -> Matcher:
        """Return a matcher at the start of a grammar."""
        ids = self.tokenizer.eos_token_ids
        compiler = GrammarCompiler(self.tokenizer, self.tokenizer.vocab_size, ids)
        return compiler.compile(StructuredOutputsParams(grammar=grammar))

    def accepts(self, grammar: str, text: str) -> bool:
        """Return whether an output may be this text."""
        matcher = self.start(grammar).clone()
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            if token not in tokens_of(matcher.mask):
                return False
            matcher.accept(token)
        return self.tokenizer.eos_token_ids[0] in tokens_of(matcher.mask)

    def walk(self, start: Matcher, seed: int) -> str:
        """Return an output of random tokens that the masks allow, which prefers to end."""
        rng, matcher, ids = random.Random(seed), start.clone(), list[int]()
        eos = self.tokenizer.eos_token_ids[0]
        closing = self.tokenizer.encode('"}]', add_special_tokens=False)
        while not matcher.is_complete:
            allowed = tokens_of(matcher.mask)
            ends = [token for token in closing if token in allowed]
            if eos in allowed and (rng.random() < 0.5 or len(ids) > 1500):
                break
            others = [token for token in allowed if token != eos] or [eos]
            token = ends[0] if ends and rng.random() < 0.3 else rng.choice(others)
            matcher.accept(token)
            ids.append(token)
        return self.tokenizer.decode([one for one in ids if one != eos], skip_special_tokens=False)

    def calls_of(self, text: str) -> list[tuple[str, Any]]:
        """Return the calls of an output that is nothing else."""
        hidden = tuple(self.tokenizer.special_token_ids(self.syntax.markup.markers))
        parsed = parse(self.syntax, text, TOOLS, hidden=hidden)
        assert not parsed.text, text
        return parsed.values

    def written(self, *calls: Call) -> str:
        if self.layout.form is CallForm.NAMED:
            return write_named_calls(calls)
        text = self.syntax.write_calls(calls)
        return text.replace("'", '"') if self.layout.form is CallForm.PYTHON else text


def models() -> list[Any]:
    """Return every syntax in every layout, its markers once as text and once as special tokens."""
    found = []
    for name, syntax in SYNTAXES.items():
        for layout in syntax.layouts:
            # The fences of Gemma's prompt form are text in every vocabulary.
            for special in ((),) if name == "gemma" else ((), syntax.markup.markers):
                model = Model(syntax, layout, scripted_tokenizer(special_tokens=special))
                what = "special" if special else "text"
                found.append(pytest.param(model, id=f"{name}-{layout.form.value}-{what}"))
    return found


every_model = pytest.mark.parametrize("model", models())


def check(calls: list[tuple[str, Any]], schemas: Mapping[str, Any]) -> None:
    for name, arguments in calls:
        jsonschema.validate(arguments, schemas[name])


CLOSED = {
    "weather": {**SCHEMA, "additionalProperties": False},
    "now": {"type": "object", "maxProperties": 0},
}
PARIS = Call("weather", {"city": "Paris", "is_brief": True})
NOW = Call("now", {})


@every_model
def test_calls_as_the_model_writes_them_are_accepted(model: Model) -> None:
    grammar = model.grammar().calls()
    for calls in ((PARIS,), (NOW,), (PARIS, NOW, PARIS)):
        assert model.accepts(grammar, model.written(*calls)), model.written(*calls)
    assert not model.accepts(grammar, "It is sunny.")
    assert not model.accepts(grammar, model.written(Call("unknown", {})))
    assert not model.accepts(grammar, model.written(Call("weather", {"city": "Rome"})))
    assert not model.accepts(model.grammar(is_single=True).calls(), model.written(PARIS, NOW))


@every_model
def test_whatever_follows_the_masks_is_calls_that_conform(model: Model) -> None:
    start = model.start(model.grammar().calls())
    for seed in range(12):
        calls = model.calls_of(model.walk(start, seed))
        assert calls
        check(calls, CLOSED)


@every_model
def test_an_output_is_calls_or_the_answer(model: Model) -> None:
    grammar = model.grammar().calls_or(ANSWER)
    assert model.accepts(grammar, '{"sum": 5}')
    assert model.accepts(grammar, model.written(PARIS, NOW))
    assert not model.accepts(grammar, '{"sum": "5"}')
    assert not model.accepts(grammar, "sunny")


@every_model
def test_text_and_calls_of_strict_tools_alternate(model: Model) -> None:
    grammar = model.grammar(STRICT).text_and_calls()
    assert model.accepts(grammar, "It is sunny.\n[1] {x} in Paris")
    assert model.accepts(grammar, model.written(PARIS, NOW))
    assert not model.accepts(grammar, model.written(Call("weather", {"city": "Rome"})))
    if model.layout.begin:
        assert model.accepts(grammar, f"I look.\n{model.written(PARIS)}")
        single = model.grammar(STRICT, is_single=True).text_and_calls()
        assert model.accepts(single, f"I look.\n{model.written(PARIS)}")
        assert not model.accepts(single, model.written(PARIS, NOW))


def hermes() -> Model:
    syntax = SYNTAXES["hermes"]
    return Model(syntax, syntax.layouts[0], scripted_tokenizer())


def test_arguments_of_a_tool_that_is_not_strict_are_any_object() -> None:
    model = hermes()
    grammar = model.grammar(STRICT).text_and_calls()
    assert model.accepts(grammar, model.written(Call("now", {"zone": 1})))
    assert not model.accepts(model.grammar().calls(), model.written(Call("now", {"zone": 1})))


@pytest.mark.parametrize(
    ("answer", "yes", "no"),
    [
        ({"regex": "a/b[0-9]|\\/c"}, "a/b7", "ab"),
        ({"choice": ["yes", "n\N{GRINNING FACE}\n"]}, "n\N{GRINNING FACE}\n", "no"),
        ({"grammar": 'start: "x" y\ny: /[{}]/'}, "x}", "x"),
        ({"json_object": True}, '{"any": [1]}', "[1]"),
    ],
    ids=str,
)
def test_every_kind_of_answer_goes_together_with_calls(
    answer: dict[str, Any], yes: str, no: str
) -> None:
    model = hermes()
    grammar = model.grammar().calls_or(StructuredOutputsParams(**answer))
    assert model.accepts(grammar, yes)
    assert model.accepts(grammar, model.written(NOW))
    assert not model.accepts(grammar, no)


def test_gbnf_and_tools_are_refused_by_name() -> None:
    answer = StructuredOutputsParams(grammar='root ::= "a"', param="ebnf")
    with pytest.raises(InvalidRequestError, match=r"ebnf is GBNF.*send it as Lark"):
        hermes().grammar().calls_or(answer)


def test_arguments_that_are_no_object_are_refused() -> None:
    tools = read_tools([declared("f", {"type": "array"})])
    with pytest.raises(InvalidRequestError, match=r"tool 'f'.*object, not 'array'"):
        hermes().grammar(tools).calls()


@pytest.mark.parametrize(("name", "parameter"), [("pythonic", "to-day"), ("qwen3_coder", "a>b")])
def test_a_parameter_that_cannot_be_written_is_refused_if_required(
    name: str, parameter: str
) -> None:
    schema = {"type": "object", "properties": {parameter: {}, "b": {"type": "null"}}}
    model = Model(SYNTAXES[name], SYNTAXES[name].layouts[0], scripted_tokenizer())
    assert model.start(model.grammar(read_tools([declared("f", schema)])).calls())
    tools = read_tools([declared("f", {**schema, "required": [parameter]})])
    with pytest.raises(InvalidRequestError, match=f"parameter '{parameter}'"):
        model.grammar(tools).calls()


def test_arguments_are_compact_and_of_an_object_that_may_be_null() -> None:
    schema = {"type": ["object", "null"], "properties": {"a": {"type": "array"}}}
    model = hermes()
    grammar = model.grammar(read_tools([declared("f", schema)])).calls()
    assert model.accepts(grammar, model.written(Call("f", {"a": [1, 2]})))
    assert not model.accepts(grammar, model.written(Call("f", {"a": [1, 2]})).replace(", 2", ",2"))
    assert not model.accepts(grammar, model.written(Call("f", {"b": 1})))


@pytest.mark.parametrize("more", [{"required": ["b"]}, {"anyOf": [{"required": ["b"]}]}], ids=str)
def test_parameters_that_are_named_elsewhere_are_allowed(more: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {}}, **more}
    model = hermes()
    grammar = model.grammar(read_tools([declared("f", schema)])).calls()
    assert model.accepts(grammar, model.written(Call("f", {"b": 1})))


def test_texts_between_tags_are_as_they_are() -> None:
    syntax = SYNTAXES["qwen3_coder"]
    model = Model(syntax, syntax.layouts[0], scripted_tokenizer())
    call = Call("weather", {"city": "Oslo", "note": 'a\n<b> "', "is_brief": False})
    assert model.accepts(model.grammar().calls(), model.written(call))


def test_a_schema_that_cannot_be_compiled_names_its_keyword() -> None:
    model = hermes()
    grammar = model.grammar(read_tools([declared("f", {"properties": {"a": {"not": {}}}})])).calls()
    with pytest.raises(
        InvalidRequestError, match=r"cannot be used: Unimplemented keys: \[.not.\]$"
    ):
        model.start(grammar)


def test_json_is_valid_up_to_its_cut() -> None:
    model = hermes()
    text = model.walk(model.start(model.grammar(is_single=True).calls()), seed=1)
    (call,) = model.calls_of(text)
    assert json.loads(json.dumps(call[1])) == call[1]


class CountedDict(dict[str, Any]):
    """Counts how often it is iterated over."""

    num_iterations = 0

    def __iter__(self) -> Iterator[str]:
        self.num_iterations += 1
        return super().__iter__()


def test_required_names_are_looked_up_not_searched() -> None:
    names = [f"p{i}" for i in range(100)]
    properties = CountedDict({name: {} for name in names})
    (tool,) = read_tools([declared("f", {"properties": properties, "required": names})])
    before = properties.num_iterations
    hermes().grammar((tool,)).calls()
    assert properties.num_iterations - before < 10


@pytest.mark.parametrize("name", ["hermes", "pythonic", "qwen3_coder"])
@pytest.mark.parametrize("required", [5, "ab", [{}], [["a"]], {"a": 1}], ids=str)
def test_names_that_are_no_names_are_not_required(name: str, required: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": required}
    model = Model(SYNTAXES[name], SYNTAXES[name].layouts[0], scripted_tokenizer())
    assert model.grammar(read_tools([declared("f", schema)])).calls()


@pytest.mark.parametrize("name", ["pythonic", "qwen3_coder"])
def test_definitions_that_every_parameter_repeats_are_bounded(name: str) -> None:
    schema = {
        "type": "object",
        "$defs": {"big": {"enum": ["x" * 1000] * 100}},
        "properties": {f"p{i}": {"type": "integer"} for i in range(100)},
    }
    model = Model(SYNTAXES[name], SYNTAXES[name].layouts[0], scripted_tokenizer())
    with pytest.raises(InvalidRequestError, match="the grammar of calls of the tools"):
        model.grammar(read_tools([declared("f", schema)])).calls()

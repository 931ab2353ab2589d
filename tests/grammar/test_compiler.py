"""Compilation of grammars: what they mean, what is refused, and in what time."""

import contextlib
import json
import sys
import threading
from pathlib import Path

import jsonschema
import pytest

from kvflow_jax.errors import InvalidRequestError, QueueFullError
from kvflow_jax.grammar.compiler import MAX_GBNF_CHARS, NUM_COMPILER_THREADS, GrammarCompiler
from kvflow_jax.grammar.spec import MAX_GRAMMAR_CHARS, StructuredOutputsParams
from tests.support.grammar_engine import TOKENIZER

COMPILED_BYTES = 170_000  # of a small grammar, rounded up
TOOL_SCHEMAS = json.loads(Path(__file__).with_name("tool_schemas.json").read_text())


def new_compiler(**settings):
    return GrammarCompiler(TOKENIZER, TOKENIZER.vocab_size, TOKENIZER.eos_token_ids, **settings)


@pytest.fixture(scope="module")
def compiler():
    return new_compiler()


def accepts(compiler, text, **fields) -> bool:
    """Return whether a grammar may end after a text."""
    matcher = compiler.compile(StructuredOutputsParams(**fields)).clone()
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if not matcher.mask[token // 32] >> (token % 32) & 1:
            return False
        matcher.accept(token)
    eos = TOKENIZER.eos_token_ids[0]
    return bool(matcher.mask[eos // 32] >> (eos % 32) & 1)


@pytest.mark.parametrize(
    ("fields", "yes", "no"),
    [
        ({"regex": "a{2,3}"}, "aaa", "aaaa"),
        ({"choice": ["yes", 'a "quoted"\nline \\ é']}, 'a "quoted"\nline \\ é', "y"),
        ({"grammar": 'start: "a" NUMBER\nNUMBER: /[0-9]+/'}, "a12", "a"),
        ({"grammar": 'root ::= "a" [0-9]+'}, "a12", "a"),
        ({"grammar": 'start: "call " %json {"type": "integer"} | "none"'}, "call 5", "call x"),
        ({"json_object": True}, '{"a": [1, null]}', "[1]"),
        ({"json": {"type": "integer", "maximum": 20}}, "20", "21"),
        ({"json": {"enum": ["é", 1]}}, '"é"', "2"),
        ({"choice": ["🎉", "no"]}, "🎉", "n"),
        ({"json": {"type": "object", "properties": {"a": {"$ref": "#"}}}}, '{"a": {}}', '{"a": 1}'),
        ({"json": {"type": "object", "x-note": 1}}, "{}", "1"),
        ({"json": {"type": "array"}}, '[\n  1,\n  "b"\n]', "[" + " " * 40 + "1]"),
    ],
    ids=str,
)
def test_what_a_grammar_accepts(compiler, fields, yes, no):
    assert accepts(compiler, yes, **fields)
    assert not accepts(compiler, no, **fields)


@pytest.mark.parametrize("name", TOOL_SCHEMAS)
def test_a_schema_of_a_real_tool_compiles_and_accepts_what_validates(compiler, name):
    schema = TOOL_SCHEMAS[name]
    value = instance(schema)
    jsonschema.validate(value, schema)
    assert accepts(compiler, json.dumps(value), json=schema)


def instance(schema):
    """Return a value of a schema: required properties only."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            required = schema.get("required", ())
            return {name: instance(own) for name, own in properties.items() if name in required}
        case "array":
            return [instance(schema.get("items", {}))]
        case kind:
            return {"integer": 3, "number": 1.5, "boolean": True}.get(kind, "text")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"json": {"not": {"type": "string"}}}, "not"),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"type": "string", "format": "phone"}}, "format: phone"),
        ({"json": {"type": "dict"}}, "Invalid type: dict"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 1}}, "minimum"),
        ({"json": {"type": "integer", "maximum": 10**400}}, "number out of range"),
        ({"json": {"allOf": [{"type": "integer"}, {"type": "string"}]}}, "incompatible types"),
        ({"json": {"$ref": "#"}}, "matches no text"),
        ({"json": {"$ref": "#/$defs/none"}}, "/\\$defs/none"),
        ({"json": {"$ref": "http://example.com/schema"}}, "http://example.com"),
        ({"json": {"type": "string", "pattern": "(?=a)b"}}, "look-around"),
        ({"regex": "("}, "unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"grammar": "start: start"}, "matches no text"),
        ({"grammar": "start: other"}, "other"),
        ({"grammar": "root ::= ("}, "GBNF"),
        ({"grammar": "root ::= " + "(" * 5000}, "GBNF"),
        ({"grammar": ""}, "GBNF"),
        ({"grammar": "root ::= " + "a " * MAX_GBNF_CHARS}, "GBNF may have"),
        ({"grammar": "\n" * MAX_GRAMMAR_CHARS}, "GBNF may have"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_grammar_that_cannot_be_used_is_refused_with_the_reason(compiler, fields, reason):
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        compiler.compile(StructuredOutputsParams(**fields, param="mine"))
    assert caught.value.param == "mine"


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "(.*a){1,30}.{20}"},
        {"regex": "(a?){1,500}(a|b){1,3000}c"},
        {"json": {"type": "string", "pattern": "(a{1,5000}){1,5000}"}},
        {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 100_000}},
        {"json": {"enum": [f"value {i}" for i in range(15_000)]}},
        {
            "json": {
                "type": "object",
                "properties": {f"p{i}": {"type": "integer"} for i in range(2000)},
                "required": [f"p{i}" for i in range(2000)],
            }
        },
    ],
    ids=lambda fields: str(fields)[:50],
)
def test_a_grammar_that_would_explode_compiles_or_is_refused(compiler, fields):
    with contextlib.suppress(InvalidRequestError):
        compiler.compile(StructuredOutputsParams(**fields))


def test_a_grammar_that_takes_too_long_is_refused():
    compiler, done = new_compiler(timeout_s=0.01), threading.Event()
    try:
        for _ in range(NUM_COMPILER_THREADS):
            compiler._threads.submit(done.wait)
        with pytest.raises(InvalidRequestError, match=r"took longer than 0\.01 s") as caught:
            compiler.compile(StructuredOutputsParams(regex="a", param="guided_regex"))
        assert caught.value.param == "guided_regex"
    finally:
        done.set()


def test_a_grammar_is_compiled_once(compiler):
    one = compiler.compile(StructuredOutputsParams(regex="once", param="guided_regex"))
    assert compiler.compile(StructuredOutputsParams(regex="once")) is one


def test_tenants_share_no_compiled_grammars(compiler):
    spec = StructuredOutputsParams(regex="shared")
    one, other = (compiler.compile(spec, tenant=tenant) for tenant in ("a", "b"))
    assert one is not other
    assert compiler.compile(spec, tenant="a") is one
    assert compiler.compile(spec, tenant="b") is other


def test_cached_grammars_are_bounded_by_the_bytes_of_each_tenant(monkeypatch):
    specs = [StructuredOutputsParams(regex=f"a{i}") for i in range(4)]
    monkeypatch.setattr("kvflow_jax.grammar.compiler.MAX_CACHED_BYTES", 2 * COMPILED_BYTES)
    compiler = new_compiler()
    other = compiler.compile(specs[0], tenant="b")
    kept = [compiler.compile(spec, tenant="a") for spec in specs]
    assert compiler.usage.num_values == 3
    assert compiler.compile(specs[0], tenant="b") is other
    assert compiler.compile(specs[3], tenant="a") is kept[3]
    assert compiler.compile(specs[0], tenant="a") is not kept[0]


def test_grammars_that_requests_use_are_bounded_by_the_bytes_of_each_tenant(monkeypatch):
    specs = [StructuredOutputsParams(regex=f"a{i}") for i in range(4)]
    monkeypatch.setattr("kvflow_jax.grammar.compiler.MAX_CACHED_BYTES", 1)
    monkeypatch.setattr("kvflow_jax.grammar.compiler.MAX_USED_BYTES", 3 * COMPILED_BYTES)
    compiler = new_compiler()
    used = [compiler.compile(spec, tenant="a").clone().clone() for spec in specs[:3]]
    with pytest.raises(QueueFullError, match="grammars of your requests"):
        compiler.compile(specs[3], tenant="a")
    compiler.compile(specs[2], tenant="a")  # cached
    compiler.compile(specs[3], tenant="b")
    del used[0]
    compiler.compile(specs[3], tenant="a")


def test_without_llguidance_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InvalidRequestError, match=r"install kvflow-jax\[serve\]"):
        new_compiler().compile(StructuredOutputsParams(regex="a"))


def test_what_grammars_share_is_built_once_ahead_of_them(monkeypatch):
    serialized, calls = type(TOKENIZER).serialized, []

    def counted(tokenizer):
        calls.append(tokenizer)
        return serialized(tokenizer)

    monkeypatch.setattr(type(TOKENIZER), "serialized", counted)
    compiler = new_compiler()
    compiler.prepare()
    assert calls == [TOKENIZER]
    assert accepts(compiler, "aa", regex="a{2,3}")
    assert calls == [TOKENIZER]


@pytest.mark.parametrize("error", [ImportError, ValueError])
def test_a_tokenizer_without_grammars_is_found_out_by_requests(monkeypatch, error):
    def fail(*args):
        raise error("no grammars")

    monkeypatch.setattr("llguidance.LLTokenizer", fail)
    new_compiler().prepare()

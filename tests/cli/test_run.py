"""`bittorch run`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bittorch.models import LanguageModel
from tests.cli import tiny_model
from tests.cli.conftest import Command

FEW = ("--max-new-tokens", 8, "--ignore-eos")


def test_run_prints_what_the_model_generates(bittorch: Command, model: Path) -> None:
    language_model = LanguageModel.from_pretrained(model)
    tokens = language_model.tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    expected = language_model.generate([tokens], max_new_tokens=8, ignore_eos=True)[0]
    result = bittorch("run", "hello", "--model", model, *FEW)
    assert (result.code, result.out) == (0, expected + "\n")


def test_run_raw_continues_the_text_itself(bittorch: Command, model: Path) -> None:
    language_model = LanguageModel.from_pretrained(model)
    expected = language_model.generate("hello", max_new_tokens=8, ignore_eos=True)[0]
    assert bittorch("run", "hello", "--raw", "--model", model, *FEW).out == expected + "\n"
    assert bittorch("run", "hello", "--model", model, *FEW).out != expected + "\n"


def test_run_keeps_keys_and_values_in_halves(bittorch: Command, model: Path) -> None:
    language_model = LanguageModel.from_pretrained(model, kv_cache="bfloat16")
    assert language_model.new_cache(1, 8).data.dtype == torch.bfloat16
    expected = language_model.generate("hello", max_new_tokens=8, ignore_eos=True)[0]
    chosen = ("--kv-cache", "bfloat16")
    assert bittorch("run", "hello", "--raw", *chosen, "--model", model, *FEW).out == expected + "\n"


def test_run_json_is_one_object(bittorch: Command, model: Path) -> None:
    plain = bittorch("run", "hello", "--model", model, *FEW)
    result = bittorch("run", "hello", "--model", model, "--json", *FEW)
    assert len(result.lines) == 1
    assert result.json["text"] + "\n" == plain.out
    assert result.json["finish_reason"] == "length"
    assert result.json["stats"]["new_tokens"] == 8
    assert result.json["stats"]["prompt_tokens"] == len("hello") + 3


def test_run_reads_stdin(bittorch: Command, model: Path) -> None:
    assert (
        bittorch("run", "-", "--model", model, *FEW, stdin="hello\n").out
        == bittorch("run", "hello", "--model", model, *FEW).out
    )


def test_run_is_reproducible_by_seed(bittorch: Command, model: Path) -> None:
    def text(seed: int) -> str:
        return bittorch("run", "a", "--model", model, "--temperature", 1, "--seed", seed, *FEW).out

    assert text(1) == text(1) != text(2)


def test_run_takes_a_system_text(bittorch: Command, model: Path) -> None:
    with_system = bittorch("run", "a", "--model", model, "--system", "be brief", "--json", *FEW).json
    assert with_system["stats"]["prompt_tokens"] == 1 + 3 + len("be brief") + 2


def test_run_depth_converts(bittorch: Command, model: Path) -> None:
    expected = LanguageModel.from_pretrained(model, depth=2).generate("abc", max_new_tokens=8, ignore_eos=True)[0]
    assert bittorch("run", "abc", "--raw", "--model", model, "--depth", 2, *FEW).out == expected + "\n"


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_run_refuses_an_empty_prompt(bittorch: Command, model: Path, prompt: str) -> None:
    result = bittorch("run", prompt, "--model", model)
    assert (result.code, result.out, result.err) == (1, "", "bittorch: error: the prompt is empty\n")


def test_run_names_the_byte_that_is_no_utf8(bittorch: Command, model: Path) -> None:
    result = bittorch("run", "-", "--model", model, stdin=b"ab\xffcd")
    assert result.code == 1
    assert "byte 0xff at offset 2" in result.err


def test_run_refuses_an_argument_that_is_no_utf8(bittorch: Command, model: Path) -> None:
    result = bittorch("run", b"ab\xff".decode(errors="surrogateescape"), "--model", model)
    assert result.code == 1
    assert "not UTF-8 at character 2" in result.err


def test_run_refuses_a_prompt_beyond_the_context(bittorch: Command, model: Path) -> None:
    result = bittorch("run", "x" * 300, "--model", model)
    assert result.code == 1
    assert "303" in result.err
    assert "256" in result.err


def test_run_without_a_template_continues_the_text(bittorch: Command, tmp_path: Path, model: Path) -> None:
    plain = tiny_model.make(tmp_path / "plain", template=False)
    assert (
        bittorch("run", "ab", "--model", plain, *FEW).out == bittorch("run", "ab", "--raw", "--model", model, *FEW).out
    )
    refused = bittorch("run", "ab", "--model", plain, "--system", "be brief")
    assert refused.code == 1
    assert "chat template" in refused.err


def test_run_raw_never_compiles_the_template(bittorch: Command, tmp_path: Path) -> None:  # FIELD R9
    broken = tiny_model.make(tmp_path / "broken")
    config = json.loads((broken / "tokenizer_config.json").read_text())
    (broken / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{% if %}"}))
    assert bittorch("run", "ab", "--raw", "--model", broken, *FEW).code == 0
    result = bittorch("run", "ab", "--model", broken, *FEW)
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch("bittorch: error: the chat template has an error in line 1: .*\n", result.err)


def test_run_reports_logits_that_are_not_finite(bittorch: Command, tmp_path: Path, model: Path) -> None:
    result = bittorch("run", "ab", "--model", tiny_model.make(tmp_path / "bad", poison=True))
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert "nan" in result.err


def test_run_says_that_an_answer_was_cut(bittorch: Command, model: Path) -> None:
    assert "cut at --max-new-tokens 8" in bittorch("run", "ab", "--model", model, *FEW).err
    assert bittorch("run", "ab", "--model", model, "--quiet", *FEW).err == ""


def test_run_stats_go_to_stderr(bittorch: Command, model: Path) -> None:
    result = bittorch("run", "ab", "--model", model, "--stats", *FEW)
    assert "5 tokens in, 8 out" in result.err
    assert "tokens in" not in result.out


def test_a_damaged_config_is_one_line(bittorch: Command, tmp_path: Path, model: Path) -> None:
    broken = tiny_model.make(tmp_path / "broken")
    (broken / "config.json").write_text(json.dumps({**tiny_model.CONFIG, "hidden_size": 48}))
    result = bittorch("run", "ab", "--model", broken)
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert "48" in result.err


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_ctrl_c_leaves_what_was_generated(
    bittorch: Command, model: Path, ctrl_c_after: Callable[[int], None], form: tuple[str, ...]
) -> None:
    expected = bittorch("run", "ab", "--model", model, *FEW, "--max-new-tokens", 3, *form)
    ctrl_c_after(3)
    result = bittorch("run", "ab", "--model", model, *FEW, *form)
    assert result.code == 130
    assert result.err == "bittorch: error: interrupted\n"
    if form:
        assert result.json["finish_reason"] == "interrupted"
        assert expected.json["text"].startswith(result.json["text"])
        assert result.json["stats"]["new_tokens"] == 3
    else:
        assert expected.out.startswith(result.out.removesuffix("\n"))

"""From each format to each, by way of files."""

import dataclasses
import errno
from pathlib import Path

import pytest
import torch

from bittorch.models.config import PROJECTIONS
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import (
    TARGETS,
    FormatError,
    LossyError,
    PackedWeight,
    convert,
    from_memory,
    gguf_writer,
    hf_writer,
    open_checkpoint,
    save,
)
from tests.models.io.tiny import BITNET, LLAMA, assert_same, model, tensors

# Where each granularity can go without loss.
HOLDS = {
    "tensor": set(TARGETS),
    "channel": set(TARGETS) - {"bitnet", "gguf-i2_s"},
    "group256": set(TARGETS) - {"bitnet", "gguf-i2_s"},
    "group64": {"bittorch", "bittorch-base3", "compressed-tensors", "gguf-q2_0"},
}


@pytest.mark.parametrize("scale", HOLDS)
@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("config", [BITNET, LLAMA], ids=["bitnet", "llama"])
def test_every_target_holds_what_it_can(config, scale: str, to: str, tmp_path: Path) -> None:
    source = model(dataclasses.replace(config, activation_bits=8), scale)
    if to not in HOLDS[scale]:
        with pytest.raises(LossyError, match="scale"):
            save(source, tmp_path / "out", to=to)
        assert not list(tmp_path.iterdir())
        return
    report = save(source, tmp_path / "out", to=to)
    assert report.scale_error == 0
    with open_checkpoint(tmp_path / "out") as written:
        assert_same(source, written)
        assert written.config == dataclasses.replace(source.config, rms_norm_eps=written.config.rms_norm_eps)
        assert written.config.rms_norm_eps == pytest.approx(source.config.rms_norm_eps, rel=1e-7)


@pytest.mark.parametrize("first", TARGETS)
def test_chains_return_to_the_beginning(first: str, tmp_path: Path) -> None:
    save(model(), tmp_path / first, to=first)
    for to in TARGETS:
        report = convert(tmp_path / first, tmp_path / f"then {to}", to=to)
        assert report.ternary == 14
        with open_checkpoint(tmp_path / f"then {to}") as written:
            assert_same(model(), written)


@pytest.mark.parametrize("to", ["bittorch", "bittorch-base3"])
def test_planes_are_kept_by_our_own_formats_alone(to: str, tmp_path: Path) -> None:
    values = tensors(LLAMA)
    name = "model.layers.0.mlp.up_proj.weight"
    plane = values[name]
    scale = torch.cat([torch.full((512,), 3.0**i / 9) for i in range(3)])
    values[name] = PackedWeight(torch.cat([plane.weight_packed] * 3), scale, plane.in_features, depth=3)
    source = from_memory(LLAMA, values, {})
    save(source, tmp_path / "own", to=to)
    with open_checkpoint(tmp_path / "own") as written:
        assert_same(source, written)
        codes = PackedWeight(plane.weight_packed, torch.ones(1), 256)
        values[name] = codes
        trits = from_memory(LLAMA, values, {}).packed(name)
        assert trits.depth == 1
        assert torch.allclose(written.dense(name), _unpacked(codes) * (1 + 1 / 3 + 1 / 9))
    with pytest.raises(LossyError, match="3 ternary planes"):
        save(source, tmp_path / "gguf", to="gguf-tq2_0")


def _unpacked(weight: PackedWeight) -> torch.Tensor:
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    fields = (weight.weight_packed[:, :, None] >> shifts) & 3
    return ((fields == 1).float() - (fields == 2).float()).flatten(1)


@pytest.mark.parametrize("to", ["gguf-tq1_0", "gguf-tq2_0", "gguf-q2_0"])
def test_half_scales_are_refused_or_reported(to: str, tmp_path: Path) -> None:
    values = tensors(LLAMA)
    for value in values.values():
        if isinstance(value, PackedWeight):
            value.scale.mul_(1 + 2**-13)
    source = from_memory(LLAMA, values, {})
    with pytest.raises(LossyError, match=r"float16.*up to 1\.22e-04"):
        save(source, tmp_path / "out", to=to)
    report = save(source, tmp_path / "out", to=to, allow_lossy=True)
    assert 1e-4 < report.scale_error < 2**-11
    for value in values.values():
        if isinstance(value, PackedWeight):
            value.scale.mul_(1e6)
    with pytest.raises(LossyError, match="beyond the range"):
        save(source, tmp_path / "other", to=to, allow_lossy=True)


def test_bitnet_of_transformers_means_8_bit_activations(tmp_path: Path) -> None:
    with pytest.raises(LossyError, match="activation_bits=None"):
        save(model(LLAMA), tmp_path / "out", to="bitnet")
    save(model(LLAMA), tmp_path / "out", to="bitnet", allow_lossy=True)
    with open_checkpoint(tmp_path / "out") as written:
        assert written.config.activation_bits == 8


def test_biases(tmp_path: Path) -> None:
    config = dataclasses.replace(BITNET, biases=PROJECTIONS)
    source = model(config)
    for to in TARGETS:
        if to == "bitnet":
            with pytest.raises(LossyError, match="bias"):
                save(source, tmp_path / to, to=to)
            save(source, tmp_path / to, to=to, allow_lossy=True)
            with open_checkpoint(tmp_path / to) as written:
                for name in (name for name in source.names if name.endswith(".bias")):
                    assert torch.allclose(written.dense(name), source.dense(name).float(), rtol=1e-6)
        else:
            save(source, tmp_path / to, to=to)
            with open_checkpoint(tmp_path / to) as written:
                assert_same(source, written)


@pytest.mark.parametrize("to", TARGETS)
def test_biases_of_q_k_v_alone(to: str, tmp_path: Path) -> None:  # FIELD L14
    source = model(dataclasses.replace(BITNET, biases=("q_proj", "k_proj", "v_proj")))
    if to in ("bitnet", "compressed-tensors"):
        with pytest.raises(LossyError, match="the model has biases of q_proj, k_proj, v_proj; transformers reads"):
            save(source, tmp_path / "out", to=to, allow_lossy=True)
        return
    save(source, tmp_path / "out", to=to)
    with open_checkpoint(tmp_path / "out") as written:
        assert_same(source, written)
        assert written.config.biases == source.config.biases


@pytest.mark.parametrize("to", TARGETS)
def test_llama3_positions_survive(to: str, tmp_path: Path) -> None:
    kind = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = {**kind, "original_max_position_embeddings": 64}
    source = model(dataclasses.replace(BITNET, rope_scaling=scaling))
    save(source, tmp_path / "out", to=to)
    with open_checkpoint(tmp_path / "out") as written:
        again = written.config.rope_scaling
        assert again == scaling or (again["rope_type"] == "factors" and len(again["factors"]) == 32)


@pytest.mark.parametrize("to", TARGETS)
def test_a_full_disk_leaves_nothing(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    module = gguf_writer if to.startswith("gguf") else hf_writer
    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(model(), tmp_path / "out", to=to)
    assert not list(tmp_path.iterdir())


def test_a_real_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """By the limit of file sizes, which the system enforces as it does a full disk."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        for to in ("bittorch", "gguf-tq2_0"):
            with pytest.raises(OSError, match=f"too large: '{tmp_path}/out'"):
                save(model(), tmp_path / "out", to=to)
            assert not list(tmp_path.iterdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("to", ["bittorch", "gguf-tq2_0"])
def test_what_is_there_stays_until_the_new_one_is_whole(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    save(model(BITNET), out, to=to)
    with pytest.raises(FileExistsError, match="overwrite"):
        save(model(LLAMA), out, to=to)
    with monkeypatch.context() as patch:
        patch.setattr("bittorch.models.io.conversion._compare", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(model(LLAMA), out, to=to, overwrite=True)
    with open_checkpoint(out) as kept:
        assert_same(model(BITNET), kept)
    save(model(LLAMA), out, to=to, overwrite=True)
    with open_checkpoint(out) as new:
        assert_same(model(LLAMA), new)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        ("main.py", "besides a checkpoint it holds main.py"),
        (".git/HEAD", r"it holds \.git"),
        ("data.safetensors", "data.safetensors"),
        ("additional_chat_templates/notes.txt", "additional_chat_templates"),
        ("model.safetensors/a", r"it holds model\.safetensors"),
    ],
)
def test_overwrite_spares_a_folder_with_anything_else(foreign: str, message: str, tmp_path: Path) -> None:
    # FIELD R3
    project = tmp_path / "project"
    save(model(), tmp_path / "source", to="bittorch")
    project.mkdir()
    (project / "config.json").write_text((tmp_path / "source" / "config.json").read_text())
    (project / foreign).parent.mkdir(exist_ok=True)
    (project / foreign).write_text("mine")
    before = sorted(project.rglob("*"))
    with pytest.raises(FileExistsError, match=f"project will not be replaced: .*{message}"):
        convert(tmp_path / "source", project, to="bittorch", overwrite=True)
    assert sorted(project.rglob("*")) == before
    assert (project / foreign).read_text() == "mine"


@pytest.mark.parametrize("content", [None, "[]", '{"port": 8080}', "{", '{"model_type": 5}'])
def test_overwrite_spares_a_config_of_something_else(content: str | None, tmp_path: Path) -> None:
    # FIELD R3
    project = tmp_path / "project"
    project.mkdir()
    (project / ("vocab.json" if content is None else "config.json")).write_text(content or "{}")
    with pytest.raises(FileExistsError, match="no checkpoint's directory"):
        save(model(), project, to="bittorch", overwrite=True)
    assert len(list(project.iterdir())) == 1


def test_overwrite_replaces_every_file_of_a_checkpoint(tmp_path: Path) -> None:
    place = tmp_path / "place"
    save(model(), place, to="bittorch")
    (place / "additional_chat_templates").mkdir()
    names = "tokenizer.json", "generation_config.json", "model-00001-of-00002.safetensors"
    for name in (*names, "model.safetensors.index.json", "additional_chat_templates/tools.jinja"):
        (place / name).write_text("old")
    save(model(LLAMA), place, to="bittorch", overwrite=True)
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("to", ["bittorch", "gguf-tq2_0"])
def test_overwrite_keeps_kinds_apart(to: str, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    (tmp_path / "letter.txt").write_text("dear")
    place = tmp_path / ("letters" if to.startswith("gguf") else "letter.txt")
    with pytest.raises(FileExistsError, match="will not be replaced"):
        save(model(), place, to=to, overwrite=True)
    assert (tmp_path / "letters" / "one.txt").read_text() == (tmp_path / "letter.txt").read_text() == "dear"


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path: Path) -> None:  # FIELD R10
    save(model(), tmp_path / "real", to="bittorch")
    (tmp_path / "latest").symlink_to("real")
    save(model(LLAMA), tmp_path / "latest", to="bittorch", overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    with open_checkpoint(tmp_path / "real") as written:
        assert_same(model(LLAMA), written)


def test_opening_puts_back_what_a_killed_writer_moved(tmp_path: Path) -> None:  # FIELD R10
    left = tmp_path / f"place.{'0' * 16}.tmp"
    left.mkdir()
    save(model(), left / "old", to="bittorch")
    with open_checkpoint(tmp_path / "place") as found:
        assert_same(model(), found)
    assert (tmp_path / "place" / "config.json").is_file()


@pytest.mark.parametrize("to", TARGETS)
def test_a_writer_that_errs_is_found_out(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trit wrong in one tensor."""
    from bittorch.models.io import codecs

    unpack, calls = codecs.unpack, []

    def erring(packed: object, columns: int) -> object:
        codes = unpack(packed, columns).copy()
        calls.append(1)
        if len(calls) == 3:
            codes[0, 0] = -1 if codes[0, 0] != -1 else 1
        return codes

    if to == "bittorch":  # stores what it is given
        file = hf_writer.SafetensorsFile
        add = file.add
        monkeypatch.setattr(
            file, "add", lambda self, name, t: add(self, name, t ^ 1 if "up_proj.weight_p" in name else t)
        )
    else:
        monkeypatch.setattr(codecs, "unpack", erring)
    with pytest.raises(FormatError, match=r"trits|code 11"):
        save(model(), tmp_path / "out", to=to)
    assert not list(tmp_path.iterdir())


def test_a_dense_model_is_converted_only_when_asked(tmp_path: Path) -> None:  # FIELD N12
    values = {name: torch.randn(shape) for name, shape in tensor_shapes(LLAMA).items()}
    save(from_memory(LLAMA, values, {}), tmp_path / "dense", to="bittorch")  # who saves a model asks for it
    with pytest.raises(ValueError, match=r"dense has no ternary tensor.*say allow_dense"):
        convert(tmp_path / "dense", tmp_path / "x", to="gguf-tq1_0")
    assert not (tmp_path / "x").exists()
    report = convert(tmp_path / "dense", tmp_path / "x", to="gguf-tq1_0", allow_dense=True)
    assert report.ternary == 0


@pytest.mark.parametrize("to", ["bittorch", "gguf-tq2_0"])
def test_the_target_is_checked_before_the_source_is_opened(to: str, tmp_path: Path) -> None:  # FIELD N14
    with pytest.raises(FileNotFoundError, match="none is not a directory to write it in") as error:
        convert(tmp_path / "no source", tmp_path / "none" / "x", to=to)
    assert error.value.filename == str(tmp_path / "none" / "x")


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    save(model(), tmp_path / "out", to="gguf-tq2_0", progress=lambda *args: seen.append(args))
    count = len(model().names)
    assert [done for done, _, _ in seen] == list(range(1, 2 * count + 1))
    assert {total for _, total, _ in seen} == {2 * count}
    assert {name for _, _, name in seen} == set(model().names)


def test_dense_dtype(tmp_path: Path) -> None:
    for to in ("bittorch", "gguf-tq2_0"):
        save(model(), tmp_path / to, to=to, dense_dtype=torch.float16)
        with open_checkpoint(tmp_path / to) as written:
            assert written.info("model.embed_tokens.weight").type == "F16"


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    config = dataclasses.replace(LLAMA, hidden_size=192, intermediate_size=320, head_dim=48)
    source = model(config)
    for to in ("gguf-tq1_0", "gguf-tq2_0"):
        with pytest.raises(LossyError, match="blocks of 256"):
            save(source, tmp_path / to, to=to)
    save(source, tmp_path / "q2", to="gguf-q2_0")
    with open_checkpoint(tmp_path / "q2") as written:
        assert_same(source, written)
    with pytest.raises(ValueError, match="to must be one of"):
        save(source, tmp_path / "x", to="gguf")

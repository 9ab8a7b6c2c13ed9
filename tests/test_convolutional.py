"""Convolutional baselines against transformers' and timm's own models and processors."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    BitConfig,
    BitForImageClassification,
    BitImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    PreTrainedModel,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from foreign import Evil
from learnable_memory.commands.training_base import TrainingBase
from learnable_memory.config import TrainOptions
from learnable_memory.convolutional import ConvolutionalBase, ConvolutionalNetwork, is_convolutional
from learnable_memory.heads import content_hash
from learnable_memory.method_spec import MethodSpec
from learnable_memory.methods import Learned
from tiny import images

FULL, HEAD = MethodSpec("full"), MethodSpec("head")
SIDE, CLASSES = 32, 7

MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic", num_labels=5)
    ),
    "bit": lambda: BitForImageClassification(
        BitConfig(embedding_size=8, hidden_sizes=[32, 64], depths=[1, 2], num_groups=4, num_labels=5)
    ),
    "regnet": lambda: RegNetForImageClassification(
        RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, num_labels=5)
    ),
    "convnext": lambda: ConvNextForImageClassification(
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 2], num_labels=5)
    ),
    "convnextv2": lambda: ConvNextV2ForImageClassification(
        ConvNextV2Config(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
    ),
}
WITH_BATCH_NORM = ("resnet", "regnet")


def randomise(model: nn.Module) -> nn.Module:
    """All tensors far from their initial values; variances stay positive."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0.0, 0.3, generator=generator)
    return model.eval()


def saved(kind: str, folder: Path) -> PreTrainedModel:
    """A tiny model, and in the folder what `save_pretrained` writes of it and its processor."""
    model = randomise(MAKERS[kind]())
    model.save_pretrained(folder)
    sides = {"height": SIDE, "width": SIDE}
    bit = BitImageProcessor(size={"shortest_edge": SIDE}, crop_size=sides)
    (bit if kind == "bit" else ConvNextImageProcessor(size={"shortest_edge": SIDE})).save_pretrained(folder)
    return model


def opened(kind: str, folder: Path) -> ConvolutionalBase:
    saved(kind, folder)
    return ConvolutionalBase.open(folder, f"somebody/{kind}")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def edit_weights(folder: Path, edit: Callable[[dict], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def learn(network: ConvolutionalNetwork, steps: int = 3) -> None:
    """Steps of SGD in train mode."""
    network.train()
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.1, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images(4, SIDE, seed=step)), torch.arange(4)).backward()
        optimizer.step()


# ------------------------------------------------------------------------------------------------------ which they are
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "resnet"}, True),
        ({"model_type": "bit"}, True),
        ({"model_type": "convnextv2"}, True),
        ({"model_type": "vit"}, False),
        ({"model_type": "swin"}, False),
        ({"model_type": "dinov3_convnext"}, False),  # transformers has no classifier of it
        ({}, False),
        ({"architecture": "resnetv2_152x4_bit"}, True),
        ({"architecture": "wide_resnet50_2"}, True),
        ({"architecture": "resnext50_32x4d"}, True),
        ({"architecture": "regnety_040"}, True),
        ({"architecture": "convnext_base"}, True),
        ({"architecture": "convnextv2_tiny", "model_type": "timm_wrapper"}, True),
        ({"architecture": "vit_base_patch16_224", "model_type": "timm_wrapper"}, False),
        ({"architecture": "vit_small_resnet26d_224"}, False),
        ({"architecture": "resnet50x4_clip_gap"}, False),
        ({"architecture": "swin_base_patch4_window7_224"}, False),
    ],
    ids=lambda value: value.get("architecture", value.get("model_type")) if isinstance(value, dict) else "",
)
def test_is_convolutional(config: dict, expected: bool) -> None:
    assert is_convolutional(config) is expected


# ---------------------------------------------------------------------------------------------------------- the network
@pytest.mark.parametrize("spec", [FULL, HEAD], ids=lambda spec: spec.method)
@pytest.mark.parametrize("kind", MAKERS)
def test_logits_are_a_linear_map_of_the_models_own_pooled_features(tmp_path: Path, kind: str, spec: MethodSpec) -> None:
    """Of images of two sizes: a convolutional network takes any."""
    theirs = saved(kind, tmp_path)
    network = ConvolutionalBase.open(tmp_path, kind).network(spec, CLASSES, seeded()).eval()
    weight, bias = (parameter for name, parameter in network.named_parameters() if "classifier" in name)
    for side in (SIDE, 48):
        pixels = images(2, side)
        with torch.no_grad():
            features = theirs.base_model(pixels).pooler_output.flatten(1)
            torch.testing.assert_close(network(pixels), features @ weight.T + bias, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_without_a_classifier_will_do(tmp_path: Path) -> None:
    model = saved("resnet", tmp_path / "with")
    model.resnet.save_pretrained(tmp_path / "without")
    ConvNextImageProcessor(size={"shortest_edge": SIDE}).save_pretrained(tmp_path / "without")
    one, other = (ConvolutionalBase.open(tmp_path / name, name) for name in ("with", "without"))
    assert one.fingerprint == other.fingerprint
    one, other = (base.network(HEAD, CLASSES, seeded()).eval() for base in (one, other))
    assert torch.equal(one(images(2, SIDE)), other(images(2, SIDE)))


def test_the_classifier_is_drawn_with_the_generator_alone(tmp_path: Path) -> None:
    base = opened("convnext", tmp_path)
    before = torch.get_rng_state()
    for spec in (FULL, HEAD):
        found = dict(base.network(spec, 1000, seeded(3)).named_parameters())
        assert torch.equal(
            found["model.classifier.weight"], torch.empty(1000, 12).normal_(0, 0.02, generator=seeded(3))
        )
        assert torch.equal(found["model.classifier.bias"], torch.zeros(1000))
    assert torch.equal(torch.get_rng_state(), before)


def resnet_parameters() -> int:
    def conv(size: int, channels: int, out: int) -> int:
        return size * size * channels * out + 2 * out  # with its batch norm

    first, others = conv(3, 8, 8) + conv(3, 8, 8), conv(3, 12, 12)
    return conv(7, 3, 8) + first + (conv(3, 8, 12) + others + conv(1, 8, 12)) + 2 * others


def bit_parameters() -> int:
    def layer(channels: int, out: int) -> int:
        """Norms before 1x1, 3x3 and 1x1 convolutions without biases, a quarter of the width between."""
        inner = out // 4
        return 2 * channels + channels * inner + 2 * inner + 9 * inner * inner + 2 * inner + inner * out

    stages = layer(8, 32) + 8 * 32 + layer(32, 64) + 32 * 64 + layer(64, 64)
    return 49 * 3 * 8 + stages + 2 * 64


def convnext_parameters() -> int:
    def layer(width: int) -> int:
        """Depthwise 7x7, norm, MLP of four times the width, layer scale."""
        return 50 * width + 2 * width + (4 * width * width + 4 * width) + (4 * width * width + width) + width

    downsampling = 2 * 8 + 4 * 8 * 12 + 12
    return (16 * 3 * 8 + 8 + 2 * 8) + layer(8) + downsampling + 2 * layer(12) + 2 * 12


@pytest.mark.parametrize(
    ("kind", "width", "encoder"),
    [("resnet", 12, resnet_parameters()), ("bit", 64, bit_parameters()), ("convnext", 12, convnext_parameters())],
)
def test_what_is_learned_by_number(tmp_path: Path, kind: str, width: int, encoder: int) -> None:
    base = opened(kind, tmp_path)
    classifier = width * CLASSES + CLASSES
    for spec, expected in ((HEAD, classifier), (FULL, encoder + classifier)):
        learned = [p for p in base.network(spec, CLASSES).parameters() if p.requires_grad]
        assert sum(p.numel() for p in learned) == expected
        assert {p.dtype for p in learned} == {torch.float32}


# ------------------------------------------------------------------------------------------------------- head and full
@pytest.mark.parametrize("kind", MAKERS)
def test_a_probe_changes_nothing_but_its_classifier(tmp_path: Path, kind: str) -> None:
    base = opened(kind, tmp_path)
    network = base.network(HEAD, CLASSES, seeded())
    learned = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    learn(network)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == learned and len(learned) == 2
    assert [name for name, parameter in network.named_parameters() if parameter.grad is not None] == [
        name for name, _ in network.named_parameters() if name in learned
    ]


def test_a_probe_stays_in_eval_mode(tmp_path: Path) -> None:
    network = opened("resnet", tmp_path).network(HEAD, CLASSES)
    for _ in range(2):  # as it comes, and after train()
        assert network.training and not any(module.training for module in network.model.modules())
        assert network.train() is network
    assert not network.eval().training


def test_a_probe_shares_the_base_and_probes_share_each_other(tmp_path: Path) -> None:
    base = opened("resnet", tmp_path)
    one, other = (base.network(HEAD, CLASSES, seeded(seed)).state_dict() for seed in (0, 1))
    places = {tensor.data_ptr() for tensor in base.model.state_dict().values()}
    assert {name for name in one if one[name].data_ptr() == other[name].data_ptr()} == {
        name for name in one if one[name].data_ptr() in places
    } == {name for name in one if "classifier" not in name}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
def test_a_whole_network_learns_everything_and_leaves_the_base(tmp_path: Path, kind: str) -> None:
    base = opened(kind, tmp_path)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    network = base.network(FULL, CLASSES, seeded())
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert all(parameter.requires_grad for parameter in network.parameters())
    learn(network)
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    after = network.state_dict()
    assert [name for name, _ in network.named_buffers() if torch.equal(after[name], own[name])] == []
    assert any(name.endswith("running_mean") for name in own) == (kind in WITH_BATCH_NORM)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())


def test_running_statistics_rest_in_eval_mode(tmp_path: Path) -> None:
    network = opened("resnet", tmp_path).network(FULL, CLASSES).eval()
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    network(images(4, SIDE))
    assert before and all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())


@pytest.mark.parametrize("spec", [FULL, HEAD], ids=lambda spec: spec.method)
@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_stored_of_a_network_brings_it_back(tmp_path: Path, kind: str, spec: MethodSpec) -> None:
    base = opened(kind, tmp_path)
    trained, fresh = (base.network(spec, CLASSES, seeded(seed)) for seed in (0, 1))
    learn(trained)
    Learned(fresh).load_state_dict(Learned(trained).state_dict())
    assert torch.equal(fresh.eval()(images(2, SIDE)), trained.eval()(images(2, SIDE)))


@pytest.mark.parametrize("spec", [FULL, HEAD], ids=lambda spec: spec.method)
def test_autocast_reaches_all_but_the_classifier(tmp_path: Path, spec: MethodSpec) -> None:
    base = opened("resnet", tmp_path)
    exact, reduced = (base.network(spec, CLASSES, seeded(), autocast=kind).eval() for kind in (None, torch.bfloat16))
    seen = []
    reduced.model.classifier[1].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    logits = reduced(images(2, SIDE))
    ((features, output),) = seen
    assert features.dtype == torch.bfloat16
    assert logits.dtype == output.dtype == torch.float32
    assert torch.equal(logits, features.float() @ reduced.model.classifier[1].weight.T)
    assert not torch.equal(logits, exact(images(2, SIDE)))
    assert {parameter.dtype for parameter in reduced.parameters()} == {torch.float32}


# --------------------------------------------------------------------------------------------------------- the files
@pytest.mark.parametrize("kind", MAKERS)
def test_the_fingerprint_is_that_of_all_tensors_but_the_classifiers(tmp_path: Path, kind: str) -> None:
    base = opened(kind, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    assert len(rest) == len(tensors) - 2
    assert base.fingerprint == content_hash(rest)
    assert base.base_id == f"somebody/{kind}"


def test_the_fingerprint_follows_running_statistics_and_not_the_classifier(tmp_path: Path) -> None:
    first = opened("resnet", tmp_path).fingerprint
    edit_weights(tmp_path, lambda tensors: tensors["classifier.1.bias"].add_(1))
    assert ConvolutionalBase.open(tmp_path, "").fingerprint == first
    edit_weights(tmp_path, lambda tensors: tensors["resnet.embedder.embedder.normalization.running_mean"].add_(1))
    assert ConvolutionalBase.open(tmp_path, "").fingerprint != first


def test_float32_whatever_the_file_holds(tmp_path: Path) -> None:
    saved("convnext", tmp_path / "x").half().save_pretrained(tmp_path / "x")
    base = ConvolutionalBase.open(tmp_path / "x", "")
    half = load_file(tmp_path / "x" / "model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    assert {tensor.dtype for tensor in base.model.state_dict().values()} == {torch.float32}
    assert base.fingerprint == content_hash({n: t.float() for n, t in half.items() if not n.startswith("classifier.")})


def without(name: str) -> Callable[[dict], None]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("resnet.embedder.embedder.convolution.weight"), r"missing: resnet\.embedder\.embedder\.convolution"),
        (without("resnet.embedder.embedder.normalization.running_var"), r"missing: .*running_var; unexpected: nothing"),
        (
            lambda tensors: tensors.update({"resnet.more": torch.zeros(2)}),
            r"missing: nothing; unexpected: resnet\.more",
        ),
        (
            lambda tensors: tensors.update({"resnet.embedder.embedder.normalization.bias": torch.zeros(3)}),
            r"of another shape: resnet\.embedder\.embedder\.normalization\.bias",
        ),
    ],
    ids=["missing weight", "missing buffer", "unexpected", "another shape"],
)
def test_a_checkpoint_that_is_not_whole(tmp_path: Path, edit: Callable[[dict], None], message: str) -> None:
    saved("resnet", tmp_path)
    edit_weights(tmp_path, edit)
    with pytest.raises(ValueError, match="is no whole ResNetForImageClassification checkpoint; .*" + message) as caught:
        ConvolutionalBase.open(tmp_path, "")
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    saved("resnet", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read .* it is damaged, or no checkpoint; replace it") as caught:
        ConvolutionalBase.open(tmp_path, "")
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        ConvolutionalBase.open(tmp_path, "")
    (tmp_path / "config.json").write_text('{"model_type": "resnet"')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        ConvolutionalBase.open(tmp_path, "")


def test_a_pickle_with_more_than_tensors_does_not_run(tmp_path: Path) -> None:
    model = saved("resnet", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    ran = tmp_path / "ran"
    torch.save({**model.state_dict(), "more": Evil(ran)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="beside its tensors, and such a pickle can run any code"):
        ConvolutionalBase.open(tmp_path, "")
    assert not ran.exists()


def test_a_network_of_one_channel_is_refused(tmp_path: Path) -> None:
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": SIDE}).save_pretrained(tmp_path)
    options = TrainOptions(dataset="Digits", base_model=str(tmp_path), method="head", device="cpu", no_download=True)
    with pytest.raises(ValueError, match="takes images of 1 channel, and they are given to a base in 3"):
        TrainingBase(options)


def test_what_is_no_convolutional_network(tmp_path: Path) -> None:
    vit = ViTConfig(image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    ViTForImageClassification(vit).save_pretrained(tmp_path)
    for place, found in ((tmp_path, "'vit'"), (tmp_path / "model.safetensors", "None")):
        with pytest.raises(
            ValueError, match=rf"no convolutional network.*\(found {found}\); legal: .*resnet, bit, reg"
        ):
            ConvolutionalBase.open(place, "")


# ---------------------------------------------------------------------------------------------------------- the pixels
def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def old_processor(size: int, **changes) -> dict:
    """What the files of microsoft/resnet-50 and facebook/convnext-tiny-224 hold."""
    return {
        "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "feature_extractor_type": "ConvNextFeatureExtractor", "resample": 3,
        "size": size, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "resize"),
    [
        (old_processor(28), (32,)),
        (old_processor(30), (34,)),  # 34.28..: rounded down
        (old_processor(28, crop_pct=0.95), (29,)),
        (old_processor(383), (437,)),
        (old_processor(384), (384, 384)),
        (ConvNextImageProcessor(size={"shortest_edge": 28}, resample=2).to_dict(), (32,)),
        (
            BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}).to_dict(),
            (40,),
        ),
        (
            BitImageProcessor(size={"height": 44, "width": 44}, crop_size={"height": 40, "width": 40}).to_dict(),
            (44, 44),
        ),
    ],
    ids=["28", "30", "0.95", "383", "384", "bilinear", "bit, shorter side", "bit, stretched"],
)
def test_pixels_are_those_of_the_processor(tmp_path: Path, settings: dict, resize: tuple) -> None:
    saved("resnet", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocessing = ConvolutionalBase.open(tmp_path, "").preprocessing
    assert preprocessing.resize == resize
    processor, transform = AutoImageProcessor.from_pretrained(tmp_path), preprocessing.eval_transform()
    for shape in ((50, 75), (31, 20), (600, 401)):
        theirs = processor(picture(*shape), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(transform(picture(*shape)), theirs), shape


def test_another_size_keeps_the_share_that_is_cut_away(tmp_path: Path) -> None:
    assert opened("convnext", tmp_path).preprocessing.at(56).resize == (63,)  # 32 is cut out of int(32 / 0.875) = 36


def test_processors_that_do_not_help(tmp_path: Path) -> None:
    saved("resnet", tmp_path)
    processor = tmp_path / "preprocessor_config.json"
    for changes, named in (
        ({"do_center_crop": True}, "do_center_crop=True: it"),
        ({"size": {"height": 28, "width": 20}}, "size={'height': 28, 'width': 20} and"),
    ):
        processor.write_text(json.dumps({**old_processor(28), **changes}))
        with pytest.raises(ValueError, match=f"cannot express ConvNextImageProcessor with .*{named}") as caught:
            ConvolutionalBase.open(tmp_path, "")
        assert "\n" not in str(caught.value)
    processor.write_text(json.dumps(old_processor(28, do_resize=False)))
    with pytest.raises(ValueError, match="do_resize=False"):
        ConvolutionalBase.open(tmp_path, "")
    processor.unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json, .*: put there the model's own"):
        ConvolutionalBase.open(tmp_path, "")


# ------------------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    "spec",
    [
        MethodSpec("memory", memory_tokens=5), MethodSpec("memory", memory_tokens=5, masking="none"),
        MethodSpec("head+class"), MethodSpec("bias"), MethodSpec("lora", rank=4),
        MethodSpec("vpt-shallow", memory_tokens=2), MethodSpec("vpt-deep", memory_tokens=2),
    ],
    ids=lambda spec: spec.name,
)  # fmt: skip
def test_methods_of_vits_are_refused(tmp_path: Path, spec: MethodSpec) -> None:
    with pytest.raises(ValueError) as caught:
        opened("convnext", tmp_path).network(spec, CLASSES)
    assert str(caught.value) == (
        f"{spec.label} belongs to the layers of a ViT, and somebody/convnext is convolutional: give --method full or "
        "--method head, or another --base_model."
    )


@pytest.mark.parametrize("kind", MAKERS)
def test_several_processes_do_not_train_batch_norms(tmp_path: Path, kind: str) -> None:
    base = opened(kind, tmp_path)
    base.check(HEAD, processes=2)
    base.check(FULL)
    if kind not in WITH_BATCH_NORM:
        return base.check(FULL, processes=2)
    first = next(name for name in base.model.state_dict() if name.endswith(".running_mean")).rpartition(".")[0]
    with pytest.raises(ValueError) as caught:
        base.check(FULL, processes=2)
    assert str(caught.value) == (
        f"somebody/{kind} has batch norms ({first}), which 2 processes would feed with different parts of each batch: "
        "train it in one process, or take a network without, such as BiT or ConvNeXt."
    )


@pytest.mark.parametrize("kind", MAKERS)
def test_gradient_checkpointing_is_refused_where_there_is_none(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^somebody/{kind} is a \w+, which has no gradient checkpointing: leave --g"):
        opened(kind, tmp_path).network(FULL, CLASSES, gradient_checkpointing=True)


# ---------------------------------------------------------------------------------------------------------------- timm
OF_TIMM = {
    "resnet18": {"channels": [8, 8, 8, 16], "layers": [1, 1, 1, 1]},
    "resnetv2_50x1_bit": {"channels": [128, 128, 128, 128], "stem_chs": 32},
    "convnext_atto": {"dims": [8, 8, 8, 16], "depths": [1, 1, 1, 1]},
}
DATA = {
    "input_size": [3, 40, 40], "interpolation": "bilinear", "crop_pct": 0.8, "crop_mode": "center",
    "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4],
}  # fmt: skip


def saved_by_timm(name: str, folder: Path, num_classes: int = 5, **changes) -> nn.Module:
    """The files of timm.models.push_to_hf_hub."""
    timm = pytest.importorskip("timm")
    arguments = OF_TIMM[name]
    model = randomise(timm.create_model(name, num_classes=num_classes, **arguments))
    folder.mkdir(exist_ok=True)
    config = {
        "architecture": name, "num_classes": num_classes, "num_features": model.num_features,
        "model_args": arguments, "pretrained_cfg": {"tag": "in1k", "num_classes": num_classes, **DATA}, **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize("num_classes", [5, 0])
@pytest.mark.parametrize("architecture", OF_TIMM)
def test_timms_networks(tmp_path: Path, architecture: str, num_classes: int) -> None:
    theirs = saved_by_timm(architecture, tmp_path, num_classes)
    base = ConvolutionalBase.open(tmp_path, "timm/x")
    pixels, width = images(2, SIDE), theirs.num_features
    encoder = sum(p.numel() for p in theirs.parameters()) - (width + 1) * num_classes
    for spec in (FULL, HEAD):
        network = base.network(spec, CLASSES, seeded()).eval()
        learned = [p for p in network.parameters() if p.requires_grad]
        assert sum(p.numel() for p in learned) == (encoder if spec is FULL else 0) + (width + 1) * CLASSES
        with torch.no_grad():
            features = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True).flatten(1)
            weight = torch.empty(CLASSES, width).normal_(0, 0.02, generator=seeded())
            torch.testing.assert_close(network(pixels), features @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_timms_pixels_are_those_of_the_folder(tmp_path: Path, crop_mode: str) -> None:
    """Up to Pillow's rounding: timm resizes PIL images, this resizes tensors. (Where the margin is odd, the centre
    may be one pixel to the left of timm's: HuggingFace rounds down, torchvision to even.)"""
    settings = {**DATA, "crop_mode": crop_mode}
    saved_by_timm("resnet18", tmp_path, pretrained_cfg=settings)
    preprocessing = ConvolutionalBase.open(tmp_path, "").preprocessing
    assert preprocessing.resize == ((50, 50) if crop_mode == "squash" else (50,))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(picture(60, 96))["pixel_values"][0]
    assert (preprocessing.eval_transform()(picture(60, 96)) - theirs).abs().max() <= 1.01 / 255 / 0.2


def test_gradient_checkpointing_of_timms_gives_the_same_gradients(tmp_path: Path) -> None:
    saved_by_timm("resnetv2_50x1_bit", tmp_path)
    base = ConvolutionalBase.open(tmp_path, "timm/x")
    plain, again = (base.network(FULL, CLASSES, seeded(), gradient_checkpointing=again) for again in (False, True))
    runs = {plain: 0, again: 0}
    for network in runs:

        def count(*_, network=network) -> None:
            runs[network] += 1

        network.model.timm_model.stages[0].blocks[1].register_forward_pre_hook(count)
        network(images(2, SIDE)).square().sum().backward()
    assert runs == {plain: 1, again: 2}
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)


def test_gradient_checkpointing_would_move_running_statistics_twice(tmp_path: Path) -> None:
    saved_by_timm("resnet18", tmp_path)
    base = ConvolutionalBase.open(tmp_path, "timm/x")
    with pytest.raises(ValueError, match=r"^timm/x has batch norms \(timm_model\.bn1\), .* count each batch twice"):
        base.network(FULL, CLASSES, gradient_checkpointing=True)
    assert base.network(HEAD, CLASSES, gradient_checkpointing=True)(images(2, SIDE)).shape == (2, CLASSES)


def test_timm_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_by_timm("resnet18", tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"is a timm model, and timm is missing: pip install 'timm>=1\.0\.12'"
    ):
        ConvolutionalBase.open(tmp_path, "")


@pytest.mark.parametrize(
    "changes",
    [{"architecture": "resnet18_of_tomorrow"}, {"model_args": {"wings": 2}}],
    ids=["architecture", "argument"],
)
def test_what_timm_cannot_make(tmp_path: Path, changes: dict) -> None:
    saved_by_timm("resnet18", tmp_path, **changes)
    with pytest.raises(ValueError, match=r"cannot make the model in .*(resnet18_of_tomorrow|wings)") as caught:
        ConvolutionalBase.open(tmp_path, "")
    assert "\n" not in str(caught.value)

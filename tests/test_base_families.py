"""Every family of vision encoders as a base: against its own stock class, and against one joint masked attention.

The oracle below shares nothing with the model but the weights, `build_attention_mask`, and the stock classes' modules.
"""

import copy
import importlib
import math

import pytest
import torch
import transformers
from torch import nn

from stock_families import CASES, IMAGES, PLAIN, TEXT, TOWERS, stock, with_heads
from vit import MemoryCapableViT, build_attention_mask


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


# ----------------------------------------------------------------------------------------------------------- the oracle
def updated(module: nn.Linear, update, index: int) -> nn.Linear:
    module = copy.deepcopy(module)
    module.weight.data += update.up[index] @ update.down[index]
    return module


def rotate(attention: nn.Module, tokens: torch.Tensor, positions) -> torch.Tensor:
    """Queries or keys [B, H, N, d] by the family's own function."""
    rotary = importlib.import_module(type(attention).__module__).apply_rotary_pos_emb
    return rotary(tokens, tokens, *positions)[0]


def joint_outputs(model, case: str, pixel_values: torch.Tensor) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """States of the base [B, N, D] after each layer, and what the classifier of every head is to read."""
    first, attention_name, output, second, mlp_name = CASES[case][3]
    encoder = next(m for m in model.modules() if isinstance(getattr(m, "embeddings", None), nn.Module))
    layers = next(m for m in encoder.modules() if isinstance(m, nn.ModuleList) and hasattr(m[0], attention_name))
    entered = []
    handle = layers[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    model(pixel_values)
    handle.remove()
    base = entered[0]  # [B, N, D]
    heads = [(name, head) for name, head in model.heads.items() if head.spec.class_token]
    has_class_token = case not in ("siglip", "siglip classifier", "aimv2", "ijepa")
    position = getattr(encoder.embeddings, "position_embeddings", None)
    if position is None and hasattr(encoder.embeddings, "position_embedding") and case != "c-radio":
        position = getattr(encoder.embeddings.position_embedding, "weight", None)
    tokens = torch.stack([head.class_token for _, head in heads])
    if has_class_token and position is not None:
        tokens = tokens + position.reshape(-1, tokens.shape[-1])[0]
    if hasattr(encoder, "pre_layrnorm"):
        tokens = encoder.pre_layrnorm(tokens)
    count = base.shape[1]
    # The order of the mask: patches, class token, heads | memory. All base tokens are alike in it.
    x = torch.cat([base, tokens.expand(len(base), -1, -1)], dim=1)
    names = [name for name, _ in heads]
    parents = [[names.index(parent) for parent in head.spec.extends] for _, head in heads]
    mask = build_attention_mask(count - 1, [head.spec.memory_tokens for _, head in heads], parents).to(x)
    window = tuple(side // 8 for side in pixel_values.shape[-2:])
    states = []
    for index, layer in enumerate(layers):
        norm, attention, mlp = getattr(layer, first), getattr(layer, attention_name), getattr(layer, mlp_name)
        memory = [
            norm(head.memory[index]) if head.spec.memory_norm else head.memory[index]
            for _, head in heads
            if head.memory
        ]
        asked = torch.cat([norm(x), torch.cat(memory).expand(len(x), -1, -1)], dim=1)

        def project(name: str, module, inputs: torch.Tensor, index=index) -> torch.Tensor:
            found, cell = module(inputs), count + len(heads)
            for number, (_, head) in enumerate(heads):
                own = [count + number, *range(cell, cell + head.spec.memory_tokens)]
                cell += head.spec.memory_tokens
                own = [row for row in own if row < inputs.shape[1]]
                if name in head.low_rank:
                    found[:, own] = updated(module, head.low_rank[name], index)(inputs[:, own])
            return found

        d = attention.head_dim
        query = project("query", attention.q_proj, norm(x)).unflatten(-1, (-1, d)).transpose(1, 2)
        key = project("key", attention.k_proj, asked).unflatten(-1, (-1, d)).transpose(1, 2)
        value = project("value", attention.v_proj, asked).unflatten(-1, (-1, d)).transpose(1, 2)
        if hasattr(encoder, "rope_embeddings"):
            positions = encoder.rope_embeddings(pixel_values)
            query = torch.cat([rotate(attention, query[:, :, :count], positions), query[:, :, count:]], dim=2)
            key = torch.cat([rotate(attention, key[:, :, :count], positions), key[:, :, count:]], dim=2)
        scores = query @ key.transpose(-1, -2) / math.sqrt(d) + mask
        bias = getattr(layer, "relative_position_bias", None) or getattr(encoder, "shared_position_bias", None)
        if bias is not None:
            table = bias(window, False, dim_size=count)  # [1, H, N, N]
            scores[:, :, :count, :count] += table
            scores[:, :, count:, :count] += table[:, :, :1]
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        out = project("output", getattr(attention, output), mixed)
        x = scale(layer, 1, out) + x
        inner = getattr(layer, second)(x)
        out = mlp(inner)
        for number, (_, head) in enumerate(heads):
            row, own = count + number, copy.deepcopy(mlp)
            for ours, theirs in (("mlp_in", ("fc1", "up_proj")), ("mlp_out", ("fc2", "down_proj"))):
                if ours in head.low_rank:
                    name = next(name for name in theirs if hasattr(own, name))
                    setattr(own, name, updated(getattr(own, name), head.low_rank[ours], index))
            out[:, row] = own(inner[:, row])
        x = scale(layer, 2, out) + x
        states.append(x[:, :count])
    final = {"c-radio": nn.Identity(), "beit": getattr(getattr(encoder, "pooler", None), "layernorm", None)}.get(case)
    if final is None:
        final = next(
            getattr(encoder, name)
            for name in ("layernorm", "post_layernorm", "norm", "rms_norm")
            if hasattr(encoder, name)
        )
    if isinstance(final, nn.Identity) and case == "beit shared":
        final = encoder.pooler.layernorm
    return states, {name: final(x[:, count + number]) for number, name in enumerate(names)}


def scale(layer: nn.Module, number: int, x: torch.Tensor) -> torch.Tensor:
    if hasattr(layer, f"layer_scale{number}"):
        return getattr(layer, f"layer_scale{number}")(x)
    return getattr(layer, f"lambda_{number}", 1.0) * x


# ------------------------------------------------------------------------------------------------------------- promises
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_base_answers_as_its_stock_class(case, dtype, attention):
    base, pixels = stock(case, dtype, attention), IMAGES.to(dtype)
    with torch.no_grad():
        expected = base(pixels, output_hidden_states=True)
        model = with_heads(base)
        found = model(pixels, output_hidden_states=True)
        run = model.run_base(pixels, lambda *_: None, want_states=True)
    assert isinstance(model, type(base)) and model.state_dict().keys() - base.state_dict().keys() == {
        key for key in model.state_dict() if key.startswith("heads.")
    }
    assert ("base" in found) == hasattr(expected, "logits")
    if "base" in found:
        assert torch.equal(found["base"].logits, expected.logits)
        assert all(map(torch.equal, found["base"].hidden_states, expected.hidden_states))
    assert len(expected.hidden_states) == 4 and all(map(torch.equal, run.outputs.hidden_states, expected.hidden_states))
    assert model.num_tokens == expected.hidden_states[0].shape[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_heads_equal_one_joint_masked_attention(case, dtype):
    model, pixels = with_heads(stock(case, dtype)), IMAGES.to(dtype)
    # AIMv2's norm rounds to float32 whatever the dtype. In float32 rounding grows with the states, which are random.
    with torch.no_grad():
        states, outputs = joint_outputs(model, case, pixels)
        found = model(pixels)
        run = model.run_base(pixels, lambda *_: None, want_states=True)
        for state, expected in zip(states, run.outputs.hidden_states[1:], strict=True):
            bound = 1e-9 if dtype == torch.float64 and case != "aimv2" else 1e-5
            assert (state - expected).abs().max() < bound * max(1.0, expected.abs().max())
        for name, output in outputs.items():
            expected = model.heads[name].classifier(output)
            assert (found[name].logits - expected).abs().max() < bound * max(1.0, expected.abs().max())


def test_a_probe_reads_what_the_classifier_of_the_family_reads(case):
    base = stock(case)
    model, read = MemoryCapableViT.from_base(base), []
    if not isinstance(getattr(base, "classifier", None), nn.Linear):
        pytest.skip(f"{type(base).__name__} has no classifier")
    base.classifier.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        base(IMAGES)
        features = model.features(IMAGES)
    assert torch.equal(features, read[0]) and features.shape[1] == model.readout_width


def test_kept_base_tokens_answer_as_pixels_do(case):
    model = with_heads(stock(case))
    with torch.no_grad():
        expected = model(IMAGES, with_base=False)
        found = model(model.base_tokens(IMAGES), with_base=False)
        assert all(torch.equal(found[name].logits, expected[name].logits) for name in expected)
        if case.startswith("dinov3"):
            with pytest.raises(ValueError, match=r"rotates its keys by the position.*: keep keys and values"):
                model.base_tokens(IMAGES, keys_and_values=False)
            return
        found = model(model.base_tokens(IMAGES, keys_and_values=False), with_base=False)
    for name, answer in expected.items():
        assert (found[name].logits - answer.logits).abs().max() < 1e-5 * max(1.0, answer.logits.abs().max())


def test_together_as_alone_and_served_as_trained(case):
    model = with_heads(stock(case, torch.float64))
    served, pixels = model.for_inference(), IMAGES.double()
    with torch.no_grad():
        together = model(pixels)
        for name in model.head_names:
            alone = model(pixels, heads=[name], with_base=False)[name].logits
            assert (alone - together[name].logits).abs().max() < 1e-9 * max(1.0, alone.abs().max())
            assert (served(pixels)[name].logits - alone).abs().max() < 1e-9 * max(1.0, alone.abs().max())


def test_a_saved_model_returns_and_its_heads_fit_the_same_base_alone(case, tmp_path):
    model = with_heads(stock(case))
    model.save_pretrained(tmp_path / "all")
    for name in ("A", "B", "probe"):
        model.save_head(name, tmp_path / f"{name}.safetensors")
    stock(case).save_pretrained(tmp_path / "stock")
    back, fresh = (MemoryCapableViT.from_pretrained(tmp_path / folder) for folder in ("all", "stock"))
    assert type(back) is type(model) and back.config.model_type == model.config.model_type
    assert back.fingerprint == fresh.fingerprint == model.fingerprint
    for name in ("A", "B", "probe"):
        fresh.load_head(tmp_path / f"{name}.safetensors")
    with torch.no_grad():
        expected, loaded = model(IMAGES), fresh(IMAGES)
        assert all(torch.equal(answer.logits, expected[name].logits) for name, answer in back(IMAGES).items())
    for name in ("A", "B", "probe"):
        largest = max(1.0, expected[name].logits.abs().max())
        assert (loaded[name].logits - expected[name].logits).abs().max() < 1e-5 * largest  # in other company
    other = MemoryCapableViT.from_base(stock("deit" if case.startswith("vit") else "vit"))
    with pytest.raises(ValueError, match="was trained on another base"):
        other.load_head(tmp_path / "A.safetensors")


def test_zeroing_a_layer_by_a_hook_reaches_every_answer(case):
    model = with_heads(stock(case))
    layers = model.encoder_module.get_submodule(model.anatomy.layers)
    with torch.no_grad():
        before = model(IMAGES)
        handle = layers[0].register_forward_hook(lambda module, args, output: torch.zeros_like(output))
        after = model(IMAGES)
        handle.remove()
        again = model(IMAGES)
    for name in before:
        assert not torch.allclose(before[name].logits, after[name].logits)
        assert torch.equal(before[name].logits, again[name].logits)


def test_heads_alone_learn(case):
    model = with_heads(stock(case))
    learned = model.train_only(["A", "C", "probe"])
    targets = {name: torch.tensor([0, 1]) for name in ("A", "C", "probe")}
    sum(answer.loss for answer in model(IMAGES, list(targets), False, targets).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in learned)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if not name.startswith("heads."))


def test_a_new_head_starts_where_the_base_starts(case):
    base = stock(case)
    model = MemoryCapableViT.from_base(base)
    model.add_head("new", 3, 0)
    if case in ("siglip", "aimv2"):
        probe = base.head.probe if case == "siglip" else base.head.cls_token
        assert torch.equal(model.heads["new"].class_token, probe[0, 0])
    elif case in ("ijepa", "siglip classifier"):
        probe = base.vision_model.head.probe[0, 0] if case != "ijepa" else torch.zeros(32)
        assert torch.equal(model.heads["new"].class_token, probe)
    else:  # as the base's own class token enters, wherever that is
        entered = model.embed(IMAGES)[0, 0]
        if hasattr(model.encoder_module, "pre_layrnorm"):
            entered = entered  # behind the norm already
        assert torch.allclose(model.class_tokens(["new"])[0], entered, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 48), (48, 48)], ids=str)
def test_other_sizes_of_images_are_the_stock_class_s_own(case, size):
    base, pixels = stock(case), torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(3))
    model = MemoryCapableViT.from_base(base)
    if case == "aimv2":
        with pytest.raises(ValueError, match="takes images of 32x32 pixels and no others"):
            model.set_image_size(size)
        return
    model.set_image_size(size)
    told = {} if case.startswith(("dinov", "c-radio", "tipsv2", "pixio")) else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = base(pixels, **told, output_hidden_states=True)
        run = model.run_base(pixels, lambda *_: None, want_states=True)
    assert all(map(torch.equal, run.outputs.hidden_states, expected.hidden_states))
    assert model.num_tokens == expected.hidden_states[0].shape[1]


@pytest.mark.parametrize(
    ("kind", "config", "settings", "reason"),
    [
        ("Sapiens2Model", "Sapiens2Config", PLAIN, "its layers are not pre-norm transformer layers"),
        ("MLCDVisionModel", "MLCDVisionConfig", PLAIN, "it turns its class token by a position of its own"),
        ("Siglip2VisionModel", "Siglip2VisionConfig", {**PLAIN, "num_patches": 16}, "it takes lists of patches"),
        ("SwinModel", "SwinConfig", {"image_size": 32}, "cannot be a base"),
        ("BertModel", "BertConfig", {**TEXT, "vocab_size": 50}, "has no embeddings followed by"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith("Model") else "",
)  # fmt: skip
def test_what_cannot_be_a_base_says_why(kind, config, settings, reason, tmp_path):
    if not hasattr(transformers, kind):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    settings = {key: value for key, value in settings.items() if kind != "Siglip2VisionModel" or key != "image_size"}
    base = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.3, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match=reason):
        MemoryCapableViT.from_base(base)
    base.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        MemoryCapableViT.from_pretrained(tmp_path)


def test_of_two_towers_the_vision_encoder_is_the_base(tmp_path):
    settings = {key: value for key, value in TOWERS.items() if key != "num_labels"}
    both = transformers.CLIPModel(transformers.CLIPConfig(**settings)).eval()
    both.save_pretrained(tmp_path)
    model = MemoryCapableViT.from_pretrained(tmp_path)
    assert isinstance(model, transformers.CLIPVisionModel) and not any("text" in key for key in model.state_dict())
    assert MemoryCapableViT.from_base(both).fingerprint == model.fingerprint
    with torch.no_grad():
        expected = both.vision_model(IMAGES).pooler_output
        model.add_head("new", 3, 0)
        assert model(IMAGES).keys() == {"new"}
        assert torch.equal(model.run_base(IMAGES, lambda *_: None).outputs.pooler_output, expected)


@pytest.mark.parametrize("kind", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_the_encoder_of_a_masked_autoencoder_becomes_a_vit_that_sees_all_patches(kind, tmp_path):
    config = transformers.ViTMAEConfig(**PLAIN, mask_ratio=0.0, decoder_num_hidden_layers=1, decoder_hidden_size=32,
                                       decoder_num_attention_heads=2, decoder_intermediate_size=32)  # fmt: skip
    mae = getattr(transformers, kind)(config).eval()
    mae.save_pretrained(tmp_path)
    encoder = getattr(mae, "vit", mae)
    for model in (MemoryCapableViT.from_pretrained(tmp_path), MemoryCapableViT.from_base(mae)):
        assert isinstance(model, transformers.ViTModel)
        with torch.no_grad():
            run = model.run_base(IMAGES, lambda *_: None)
            noise = torch.arange(16.0).expand(2, -1)  # in their order
            expected = encoder(IMAGES, noise=noise).last_hidden_state
        assert torch.allclose(run.outputs.last_hidden_state, expected, atol=1e-5)

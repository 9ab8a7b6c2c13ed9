"""Whether the layers of a family that nobody has listed are what they are taken for."""

from typing import Any

import torch

from learnable_memory.model.base_tokens import KeysAndValues


def check_layers(model: Any) -> None:
    """Raise ValueError if the layers of a family without a row in FAMILIES are not pre-norm ones as they are run here.

    The base's first token is taken through the layers like a class token without memory, on one image of noise, and has
    to come out as the stock class has it, to 1e-3 in float32.
    """
    if model.anatomy.listed:
        return
    name, seen = "first-token", []  # type: tuple[str, list[Any]]
    shape = 1, model.anatomy.channels, *model.image_size
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    try:
        with torch.no_grad():
            model.add_head(name, 1, 0, generator=torch.Generator())
            run = model.run_base(noise, lambda index, keys: seen.append(keys), want_states=True)
            stream = model.stream_class(model, [name], 1, False, False)
            for index, (parts, base) in enumerate(zip(model.layer_parts(), seen, strict=True)):
                bias = None if base.bias is None else base.bias[..., 1:]
                others = KeysAndValues(base.key[:, :, 1:], base.value[:, :, 1:], bias)
                stream.tokens, after = (run.outputs.hidden_states[i][:, :1] for i in (index, index + 1))
                stream.layer(index, parts, others)
                found, after = stream.tokens.float(), after.float()
                bound = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
                if not torch.allclose(found, after, rtol=bound, atol=bound * after.abs().max().item()):
                    raise ValueError("they give something else")
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"A {type(model.encoder_module).__name__} cannot be a base: its layers are not pre-norm transformer layers "
            f"as they are known here ({error})."
        ) from None
    finally:
        model.remove_head(name)

"""The projections of a ViT's layer, by the names that head files use. Standard library only."""

from collections.abc import Mapping

PROJECTIONS = ("query", "key", "value", "output", "mlp_in", "mlp_out")  # the MLP's two are fc1 and fc2
USUAL_PROJECTIONS = ("query", "output", "mlp_in", "mlp_out")  # those that one rank for all means


def projection_size(projection: str, hidden_size: int, intermediate_size: int) -> tuple[int, int]:
    """How wide the inputs and the outputs of a projection are."""
    inputs = intermediate_size if projection == "mlp_out" else hidden_size
    return inputs, intermediate_size if projection == "mlp_in" else hidden_size


def ranks_in_short(ranks: Mapping[str, int]) -> str:
    """Ranks by projection as a table has room for: `8`, `4/8` where they differ, `0` where there are none."""
    return "/".join(map(str, sorted(set(ranks.values())))) or "0"

"""The projections of a ViT's layer, by the names that head files use. Standard library only."""

PROJECTIONS = ("query", "key", "value", "output", "mlp_in", "mlp_out")  # the MLP's two are fc1 and fc2
USUAL_PROJECTIONS = ("query", "output", "mlp_in", "mlp_out")  # those that one rank for all means


def projection_size(projection: str, hidden_size: int, intermediate_size: int) -> tuple[int, int]:
    """How wide the inputs and the outputs of a projection are."""
    inputs = intermediate_size if projection == "mlp_out" else hidden_size
    return inputs, intermediate_size if projection == "mlp_in" else hidden_size

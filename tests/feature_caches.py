"""Caches of a tiny model's tokens of noisy pictures."""

from learnable_memory.features import FeatureCache, contents_of
from learnable_memory.loading import make_loader
from toy_training import PREPROCESSING

COUNT = 22  # no multiple of a batch, nor of a shard


def batches_of(image_set, views="crop_flip", seed=0):
    """What a build asks for pixels."""
    transform = PREPROCESSING.train_transform(views) if views else PREPROCESSING.eval_transform()
    return lambda keys: make_loader(image_set, transform, seed=seed, batch_sampler=keys)


def a_cache(model, image_set, views=1, folder=None, kind="crop_flip", form="keys_values", dtype="float32"):
    contents = contents_of(model, image_set, PREPROCESSING.hash, kind, 0, form, dtype)
    return FeatureCache(contents, len(image_set), views, folder)


def built(model, image_set, views=1, folder=None, kind="crop_flip", **changes):
    cache = a_cache(model, image_set, views, folder, kind, **changes)
    cache.build(model, batches_of(image_set, kind), 5)
    assert cache.missing() == []
    return cache

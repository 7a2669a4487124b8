"""What a prepared data set decides in a config: how its photographs became squares, and of which side."""

from hpc_recolor.config import OF_DATA_SET, Config
from hpc_recolor.config_file import load_config, merge
from hpc_recolor.data import shards
from hpc_recolor.runtime.errors import UserError


def with_set_options(config: Config) -> Config:
    """The config with data.size and data.fit as its data set was prepared. Without data.shards it is unchanged.

    Raises UserError if the data set is missing or damaged, or if the generator cannot take images of that size.
    """
    if config.data.shards is None:
        return config
    options = shards.read_set(config.data.shards, "data.shards").options
    return load_config(None, merge(config.model_dump(), {"data": {key: getattr(options, key) for key in OF_DATA_SET}}))


def check_given(config: Config, adopted: Config) -> None:
    """Raise UserError if the config itself asks for another size or fit than its data set has.

    adopted: what `with_set_options` made of it.
    """
    for key in OF_DATA_SET:
        asked, found = getattr(config.data, key), getattr(adopted.data, key)
        if key in config.data.model_fields_set and asked != found:
            raise UserError(
                f"data.{key}={asked}",
                f"{config.data.shards} was prepared with --{key} {found}",
                f"use --data.{key} {found}, or prepare the photographs with --{key} {asked}",
            )

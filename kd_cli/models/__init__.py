"""Networks: one file per family; `MODELS` imports the one whose name a component begins with."""

# What any network's options may say beside its own: how it is shown the images, as `kd_cli.models.view` has it.
VIEW = ("mean", "std", "image_size", "interpolation")
AS_DATA = "data"  # in their place: as all see them

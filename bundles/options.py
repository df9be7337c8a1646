"""What the command line says over a recipe, or in place of one."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.bundle.manifest import ModelType, VariantName
from agent.errors import OperatorError
from bundles.recipe import FILE_NAME, Bounds, ImageInputRecipe, Normalise, Recipe, RecipeFolder, Target, open_recipe


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says over the recipe, or in place of one. None: not said."""

    name: str | None = None
    version: str | None = None
    license: str | None = None
    model_type: ModelType | None = None
    labels: tuple[str, ...] | None = None
    normalise: Normalise | None = None
    calibration: Path | None = None
    golden: Path | None = None
    dimensions: dict[str, int | Bounds] = field(default_factory=dict)
    max_drop: float | None = None
    variants: tuple[VariantName, ...] | None = None
    targets: tuple[Target, ...] | None = None


def open_source(source: Path, options: Options) -> RecipeFolder:
    """Read the recipe, or make one for a bare model, and lay the command line's words over it.

    Args:
        source: A folder with bundle.yaml, that file, or an .onnx file.
        options: What was said.

    Raises:
        ConfigurationError: bundle.yaml has problems.
        OperatorError: an option breaks a rule of the recipe.
    """
    if source.name == FILE_NAME:
        folder = open_recipe(source.parent)
    elif source.is_dir():
        folder = open_recipe(source)
    else:
        folder = RecipeFolder(Recipe(name=_name_of(source), model=source.name), source, (), None, None)
    said: dict[str, Any] = {
        key: value for key in ("name", "version", "license") if (value := getattr(options, key)) is not None
    }
    if options.variants is not None or options.targets is not None:
        said |= {"variants": options.variants or (), "targets": options.targets or ()}
    recipe = folder.recipe
    if options.model_type:
        said["decoder"] = recipe.decoder.model_copy(update={"model_type": options.model_type})
    if options.normalise and isinstance(recipe.input, ImageInputRecipe):
        said["input"] = recipe.input.model_copy(update={"normalise": options.normalise})
    if options.max_drop is not None:
        said["gates"] = recipe.gates.model_copy(update={"max_drop": options.max_drop})
    said["dimensions"] = {**recipe.dimensions, **options.dimensions}
    return replace(
        folder,
        recipe=_checked(recipe.model_copy(update=said), source),
        labels=folder.labels if options.labels is None else options.labels,
        calibration=options.calibration or folder.calibration,
        golden=options.golden or folder.golden,
    )


def _name_of(source: Path) -> str:
    """Return a bundle's name for a file of any name: `Über groß.onnx` gives `uber-gross`."""
    letters = unicodedata.normalize("NFKD", source.stem.casefold())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return re.sub(r"[^a-z0-9._-]", "-", plain).lstrip("._-")[:64] or "model"


def _checked(recipe: Recipe, source: Path) -> Recipe:
    """`model_copy` checks nothing; a name from the command line must obey the same rules as one in the file."""
    from pydantic import ValidationError

    try:
        return Recipe.model_validate(recipe.model_dump(by_alias=True))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + next(str(part) for part in reversed(first["loc"]) if isinstance(part, str)).replace("_", "-")
        raise OperatorError(f"{option}: {first['msg']}", where=str(source), hint="correct the option") from error

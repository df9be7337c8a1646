"""The command group `holdfast bundle`: build a bundle, look into one, prove that one is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import typer

from agent.bundle.finding import find_bundle
from agent.bundle.manifest import Accuracy, Manifest, ModelType, VariantName
from agent.bundle.reader import Bundle, blobs_of, open_bundle
from agent.errors import OperatorError
from bundles.recipe import TARGETS, Bounds, Normalise

if TYPE_CHECKING:
    from rich.console import Console

    from bundles.build import BuildReport, Progress, VariantReport

app = typer.Typer(help="Build bundles from models, look into them, verify them.", no_args_is_help=True)

Word = TypeVar("Word", bound=str)
_VARIANTS: dict[VariantName, None] = dict.fromkeys(get_args(VariantName))

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
BundleArgument = Annotated[str, typer.Argument(help="The folder of a built bundle, or `parcels` or `bearing`.")]


@app.command("build")
def build_command(
    source: Annotated[Path, typer.Argument(help="A folder with bundle.yaml, or any .onnx file.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(help="The bundle's folder. Default: SOURCE/built, or a model's name with the suffix .bundle."),
    ] = None,
    model_type: Annotated[ModelType | None, typer.Option(help="The decoder, where it cannot be recognised.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="A text file with one label a line; or the labels, with commas; or `coco`.")
    ] = None,
    normalise: Annotated[Normalise | None, typer.Option(help="How pixels are normalised.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="A folder of 100 to 500 typical samples, for INT8.")] = None,
    golden: Annotated[
        Path | None, typer.Option(help="A folder of other samples, on which variants are judged.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name.")] = None,
    version: Annotated[str | None, typer.Option(help="The bundle's version.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="The model's licence, as SPDX spells it.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="The largest loss of the task's metric, from 0 to 1.")] = None,
    variants: Annotated[
        str | None,
        typer.Option(help=f"Only these, with commas: {', '.join(_VARIANTS)}. Default: fp32, int8, int8-dynamic."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help=f"What the devices are, with commas: {', '.join(TARGETS)}. Each stands for some variants."),
    ] = None,
    dimension: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=SIZE for a dimension that may vary, or NAME=MIN..MAX to leave it open; may be repeated."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Repair a model, make and judge its quantized variants, and write a bundle."""
    from bundles.build import build
    from bundles.options import Options

    options = Options(
        name=name,
        version=version,
        license=license_,
        model_type=model_type,
        labels=_labels(labels),
        normalise=normalise,
        calibration=_folder("--calibration", calibration),
        golden=_folder("--golden", golden),
        dimensions=dict(_dimension(text) for text in dimension or ()),
        max_drop=max_drop,
        variants=_chosen("--variants", variants, _VARIANTS),
        targets=_chosen("--target", target, TARGETS),
    )
    with _progress(is_shown=not as_json) as progress:
        report = build(source, output, options, progress)
    if as_json:
        _print_json({**asdict(report), "variants": [_variant_values(each) for each in report.variants]})
    else:
        _print_report(report)


@app.command()
def inspect(bundle: BundleArgument, *, as_json: JsonOption = False) -> None:
    """Show what a bundle holds: input, decoder, variants with their accuracy, and what was left out."""
    opened = open_bundle(find_bundle(bundle), verify=False)
    if as_json:
        _print_json({"digest": opened.digest, **opened.manifest.model_dump(mode="json")})
    else:
        _print_manifest(opened)


@app.command()
def verify(bundle: BundleArgument, *, as_json: JsonOption = False) -> None:
    """Read every byte of a bundle and compare it with what the manifest pins."""
    opened = open_bundle(find_bundle(bundle), verify=True)
    blobs = list(blobs_of(opened.manifest))
    size_bytes = sum(blob.size_bytes for blob in blobs)
    if as_json:
        _print_json({"digest": opened.digest, "blobs": len(blobs), "size_bytes": size_bytes, "is_whole": True})
    else:
        typer.echo(f"{bundle}: whole, {len(blobs)} blobs, {_size(size_bytes)}, digest {opened.digest}")


def _labels(text: str | None) -> tuple[str, ...] | None:
    from bundles.recipe import read_labels

    if text is None:
        return None
    if Path(text).is_file():
        return read_labels(Path(text))
    if "/" in text or text.endswith(".txt"):
        raise OperatorError("there is no such file of labels", where=text, hint="check the path after --labels")
    return tuple(word.strip() for word in text.split(","))


def _chosen(option: str, text: str | None, known: Mapping[Word, object]) -> tuple[Word, ...] | None:
    """Return the words between the commas, each as its key in `known`; None where nothing was said."""
    words = [word.strip() for word in text.split(",")] if text else []
    by_name = {str(name): name for name in known}
    if unknown := [word for word in words if word not in by_name]:
        raise OperatorError(f"{option}: unknown {', '.join(unknown)}", hint=f"known: {', '.join(by_name)}")
    return tuple(by_name[word] for word in words) or None


def _folder(option: str, path: Path | None) -> Path | None:
    if path is not None and path.is_file():
        hint = "samples are files in a folder: pictures, or .npy files of windows, float32 (window_size, channels)"
        raise OperatorError(f"{option} takes a folder, and this is a file", where=str(path), hint=hint)
    if path is not None and not path.is_dir():
        raise OperatorError("there is no such folder", where=str(path), hint=f"check the path after {option}")
    return path


def _dimension(text: str) -> tuple[str, int | Bounds]:
    name, _, size = text.rpartition("=")
    sizes = [int(word) if word.isdecimal() else 0 for word in size.split("..")]
    if name and len(sizes) == 1 and sizes[0]:
        return name, sizes[0]
    if name and len(sizes) == 2 and 0 < sizes[0] < sizes[1]:
        return name, Bounds(min=sizes[0], max=sizes[1])
    raise OperatorError(
        f"--dimension {text}: expected NAME=SIZE or NAME=MIN..MAX", hint="for example --dimension height=640"
    )


@contextmanager
def _progress(*, is_shown: bool) -> Iterator[Progress]:
    """Show the step that runs on a terminal; elsewhere one line for each."""
    from rich.console import Console

    console = Console(stderr=True, quiet=not is_shown)
    if not console.is_terminal:
        yield lambda step: console.print(f"{step} …", highlight=False)
        return
    with console.status("starting") as status:
        yield lambda step: status.update(f"{step} …")


def _variant_values(variant: VariantReport) -> dict[str, Any]:
    values = asdict(variant)
    values["accuracy"] = _accuracy_values(variant.accuracy)
    for tried, each in zip(values["tries"], variant.tries, strict=True):
        tried["accuracy"] = _accuracy_values(each.accuracy)
    return values


def _accuracy_values(accuracy: Accuracy | None) -> dict[str, Any] | None:
    return accuracy.model_dump(mode="json") if accuracy else None


def _print_json(values: dict[str, Any]) -> None:
    typer.echo(json.dumps(values, indent=2, default=str, ensure_ascii=False))


def _print_report(report: BuildReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"{report.name} {report.version}", title_justify="left")
    for heading in ("variant", "size", "metric", "value", "drop", ""):
        table.add_column(heading, justify="right" if heading in {"size", "value", "drop"} else "left", no_wrap=True)
    for each in report.variants:
        size = _size(each.size_bytes) if each.size_bytes else ""
        table.add_row(each.name, size, *_accuracy(each.accuracy), "" if each.is_included else "[yellow]left out[/]")
    console.print(table)
    for each in report.variants:
        if len(each.tries) > 1:
            _print_trade_off(console, each)
    verdicts = [f"{each.name}: {each.verdict}" for each in report.variants]
    assumed = "Assumed, since nobody said otherwise"
    for title, lines in (("Variants", verdicts), ("Repaired", report.repairs), (assumed, report.assumptions)):
        if lines:
            console.print(f"{title}:")
            for line in lines:
                console.print(f"  • {line}", markup=False, soft_wrap=True)
    console.print(f"Outputs as shipped and as repaired differ by at most {report.parity:.2g}.")
    console.print(f"Written to {report.folder}, digest {report.digest}", markup=False, soft_wrap=True)


def _print_trade_off(console: Console, variant: VariantReport) -> None:
    """What each set of layers left in float32 cost and gained, in the order tried."""
    from rich.table import Table

    table = Table(title=f"{variant.name}: layers left in float32", title_justify="left", box=None, pad_edge=False)
    for heading in ("layers", "size", "metric", "value", "drop", "", "which"):
        is_number = heading in {"layers", "size", "value", "drop"}
        justify: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(heading, justify=justify, no_wrap=heading != "which", overflow="fold")  # a name is whole
    for each in variant.tries:
        names = ", ".join(each.float_layers[:4]) + (", …" if len(each.float_layers) > 4 else "")
        mark = "[yellow]misses[/]" if each.failure else "[green]passes[/]"
        if not each.failure and each.float_layers == variant.float_layers:
            mark = "[green]chosen[/]"
        count = str(len(each.float_layers))
        table.add_row(count, _size(each.size_bytes), *_accuracy(each.accuracy), mark, names)
    console.print(table)


def _accuracy(accuracy: Accuracy | None) -> tuple[str, str, str]:
    if accuracy is None:
        return "", "", ""
    return accuracy.metric, f"{accuracy.value:.4f}", f"{accuracy.drop:.4f}"


def _print_manifest(bundle: Bundle) -> None:
    from rich.console import Console
    from rich.table import Table

    manifest = bundle.manifest
    console = Console(highlight=False)
    console.print(f"{manifest.name} {manifest.version}  digest {bundle.digest}", markup=False, soft_wrap=True)
    for title, part in (("input", manifest.input), ("decoder", manifest.decoder)):
        values = part.model_dump(mode="json", exclude_defaults=True, exclude={"labels"})
        console.print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in values.items()), markup=False)
    if manifest.decoder.labels:
        console.print(f"labels: {_labels_text(manifest)}", markup=False)
    table = Table()
    for heading in ("variant", "size", "opset", "metric", "value", "drop"):
        table.add_column(heading, justify="right" if heading in {"size", "value", "drop"} else "left", no_wrap=True)
    for each in manifest.variants:
        size = each.model.size_bytes + sum(blob.size_bytes for blob in each.external_data.values())
        table.add_row(each.name, _size(size), str(each.opset), *_accuracy(each.accuracy))
    console.print(table)
    for refused in manifest.refused:
        console.print(f"{refused.name} was left out: {refused.reason}", markup=False, soft_wrap=True)
    console.print(f"{len(manifest.golden)} golden samples; licence: {manifest.license or 'not said'}", markup=False)


def _labels_text(manifest: Manifest) -> str:
    labels = manifest.decoder.labels
    return ", ".join(labels[:12]) + (f" … ({len(labels)})" if len(labels) > 12 else "")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"

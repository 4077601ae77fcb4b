"""What ``pull`` does, whoever read its words."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pyctrd.cli.output import EXIT_FAILED, describe, hint_for, print_error, print_json
from pyctrd.cli.progress import show_progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyctrd import PullMany
    from pyctrd.cli.globals import Globals
    from pyctrd.cli.progress import Mode
    from pyctrd.image import Image


def pull(
    options: Globals,
    references: tuple[str, ...],
    wanted: Mapping[str, Any] | None = None,
    *,
    quiet: bool = False,
    shown: Mode | None = None,
    stages: bool = False,
    as_json: bool = False,
    **engine_options: Any,
) -> int:
    """Bring images in and print what came.

    Args:
        options: The global ones.
        references: What to pull; of several, each is printed as it comes in.
        wanted: What the pull itself is called with.
        quiet: Draw no progress, and print of each image its digest only.
        shown: What progress is shown as; None is bars on a terminal.
        stages: Add the times of the pipeline's stages to the JSON form.
        as_json: Print one document, at the end.
        engine_options: What the engine is opened with, beside the global options.

    Returns:
        The status to exit with.
    """
    with (
        options.engine(**engine_options) as engine,
        show_progress(shown, quiet=quiet or as_json) as progress,
    ):
        if len(references) > 1:
            results = engine.images.pull_many(references, **(wanted or {}), progress=progress)
            return _print_results(results, references, as_json=as_json, quiet=quiet)
        image = engine.images.pull(references[0], **(wanted or {}), progress=progress)
        document = _document(image) | ({"stages": engine.stages()} if stages else {}) if as_json else None
    if document is not None:
        print_json(document)
    else:
        sys.stdout.write(f"{image.digest}\n")
    return 0


def _print_results(results: PullMany, references: tuple[str, ...], *, as_json: bool, quiet: bool) -> int:
    """What came of several references; the status to exit with."""
    documents: dict[str, dict[str, Any]] = {}
    failed = False
    with results:
        for result in results:
            if result.image is None:
                failed = True
                error = result.error or AssertionError("neither image nor error")
                print_error(f"{result.reference}: {describe(error)}", hint_for(error))
                documents[result.reference] = {"reference": result.reference, "error": describe(error)}
            elif as_json:
                documents[result.reference] = {"reference": result.reference, **_document(result.image)}
            elif quiet:
                sys.stdout.write(f"{result.image.digest}\n")
            else:
                sys.stdout.write(f"{result.image.name.partition('@')[0]}@{result.image.digest}\n")
    if as_json:
        # Those that came twice, in whatever form, ended once.
        print_json([documents[reference] for reference in dict.fromkeys(references) if reference in documents])
    return EXIT_FAILED if failed else 0


def _document(image: Image) -> dict[str, Any]:
    from pyctrd.cli.describe import describe_image

    return describe_image(image)

"""The page of a study: its table, what it says, and a picture."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from experiments.reports.columns import Column, score
from experiments.reports.figures import panels, shown_name
from experiments.reports.gather import Frame, Series, numbers, spread, write_csv
from experiments.reports.page import (
    Block,
    Code,
    Heading,
    Picture,
    Table,
    Text,
    to_markdown,
)
from experiments.reports.study import (
    Difference,
    at_choice,
    chosen_cells,
    columns,
    differences,
    signed,
    verdict,
)
from experiments.reports.study_diversity import (
    APART,
    correlation_text,
    correlations,
    draw_gains,
    with_gains,
)
from experiments.runs.written import Outputs
from experiments.studies.values import Arm, Cell, Study


def page_files(name: str, out: Path) -> Outputs:
    """The files of `write_page`.

    Raises:
      ValueError: naming one that is there, and that no study wrote.
    """
    return Outputs(
        out,
        *(f"{name}.{kind}" for kind in ("csv", "md", "png")),
        f"{name}_tickets.png",
    )


def write_page(study: Study, name: str, rows: Frame, out: Path) -> Path:
    """Writes ``NAME.csv``, ``NAME.md`` and pictures; returns the page.

    Args:
      study: what was compared.
      name: of the study.
      rows: of `gather_study` or `read_table`.
      out: the folder, made if it is not there.

    Raises:
      ValueError: as `page_files` does.
    """
    files = page_files(name, out)
    lines = rows.astype(object).where(rows.notna(), None).to_dict("records")
    files.write(f"{name}.csv", lambda path: write_csv(path, lines, columns(study)))
    at_best = rows if study.choice is None else at_choice(study, rows)
    compared = [(a, b, differences(study, at_best, a, b)) for a, b in study.versus]
    compared = [(a, b, found) for a, b, found in compared if found]
    blocks = _blocks(study, name, rows, compared)
    if compared:
        picture = out / f"{name}.png"
        files.write(picture.name, lambda path: _draw(path, study, compared))
        caption = (
            f"Differences in {_what(score(study.score))}, with 95% intervals; "
            "dots are seeds"
        )
        blocks.append(Picture(picture, caption))
    gains = with_gains(study, rows)
    if found := correlations(gains):
        picture = out / f"{name}_tickets.png"
        files.write(picture.name, lambda path: draw_gains(path, study, gains))
        caption = "What superposing adds, by how far apart the tickets are"
        blocks += [
            *(Heading(2, "Diversity and gain"), correlation_text(study), found),
            Picture(picture, caption),
        ]
    files.write(f"{name}.md", to_markdown(blocks))
    return out / f"{name}.md"


def _blocks(
    study: Study, name: str, rows: Frame, compared: Sequence[Any]
) -> list[Block]:
    hours = numbers(rows["seconds"]).sum() / 3600
    seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
    makers = rows[["device", "jax"]].dropna().drop_duplicates().to_dict("records")
    made = " and ".join(f"{m['device']}, jax {m['jax']}" for m in makers)
    split = " and ".join(map(str, rows["evaluated_on"].unique()))
    blocks: list[Block] = [
        Heading(1, study.title),
        Text(f"{study.question} ({study.mirrors})"),
        Code(
            f"python -m experiments.study {name} --out=OUT\n"
            f"# configuration: {study.config}"
        ),
        Text(
            f"{len(rows)} runs, {hours:.1f} hours in all, with a phase 1 that several "
            f"share counted in each; seeds {seeds}; on {made}. "
            f"Scores are of the {split} {_examples(study)}: mean (standard deviation) "
            "over seeds. Differences are paired by seed, with the 95% interval of "
            "their mean by Student's t, which is not corrected for the number of cells."
        ),
        *([Text(study.remarks)] if study.remarks else []),
        *(Text(verdict(*each)) for each in compared),
    ]
    if compared:
        blocks += [Heading(2, "Differences"), _differences_table(study, compared)]
    arms = [arm.name for arm in study.arms if (rows["arm"] == arm.name).any()]
    if study.choice is not None:
        blocks += _choice(study, rows, arms)
    compared_by = score(study.score)
    for name, title, scale, digits in (
        (study.score, compared_by.heading.capitalize(), compared_by.scale, 2),
        ("nll", "NLL, nats", 1, 3),
        ("ece", "ECE, %", 100, 1),
    ):
        cells = [
            _scores(c, same, arms, name, scale, digits) for c, same in _cells(rows)
        ]
        blocks += [Heading(2, title), Table(["cell", *arms], cells)]
    if tickets := _tickets(study, rows, arms):
        blocks += [Heading(2, "The tickets"), tickets]
    if costs := _costs(rows, arms):
        blocks += [Heading(2, "What it costs"), Text(_COSTS), *costs]
    return [*blocks, Heading(2, "The arms"), _arms(study, rows)]


def _choice(study: Study, rows: Frame, arms: Sequence[str]) -> list[Block]:
    chosen = chosen_cells(study, rows)
    column = score(study.score)
    lines = [
        [*_scores(cell, same, arms, "validation", column.scale, 2)]
        for cell, same in _cells(rows)
    ]
    lines.append(["chosen", *(chosen.get(arm, "") for arm in arms)])
    return [
        Heading(2, f"The choice of {study.choice}"),
        Text(
            f"{column.heading.capitalize()} at the end on the validation split, by "
            "which each arm gets its best; the differences above are between these."
        ),
        Table(["cell", *arms], lines),
    ]


def _cells(rows: Frame) -> Any:
    return rows.groupby("cell", sort=False)


def _what(column: Column) -> str:
    return "points of accuracy" if column.name == "accuracy" else column.title


def _examples(study: Study) -> str:
    return "words" if study.score == "perplexity" else "images"


def _differences_table(study: Study, compared: Sequence[Any]) -> Table:
    unit = "".join(f", {unit}" for unit in [score(study.score).unit] if unit)
    return Table(
        [
            *("arm", "against", "cell", f"arm{unit}", f"other{unit}"),
            *("difference", "95% interval", "better in"),
        ],
        [
            [
                *(arm, base, d.cell, _mean(d.ours), _mean(d.base), signed(d.mean)),
                f"{d.mean - d.half_width:+.2f} to {d.mean + d.half_width:+.2f}",
                f"{d.wins} of {len(d.by_seed)}",
            ]
            for arm, base, found in compared
            for d in found
        ],
        texts=3,
    )


def _scores(
    cell: str, same: Frame, arms: Sequence[str], name: str, scale: float, digits: int
) -> list[str]:
    values = [scale * spread(same[same["arm"] == arm][name]) for arm in arms]
    return [cell, *(_mean(value, digits) for value in values)]


def _mean(found: Series, digits: int = 2) -> str:
    if isnan(found["mean"]):
        return ""
    text = f"{found['mean']:.{digits}f}"
    return text if isnan(found["std"]) else f"{text} ({found['std']:.{digits}f})"


def _tickets(study: Study, rows: Frame, arms: Sequence[str]) -> Table | None:
    column = score(study.score)
    shared = {
        "mean_ticket": "mean ticket",
        "best_ticket": "best ticket",
        column.name: "superposed",
        "ensemble": "ensemble",
    }
    names = {name: column._replace(title=title) for name, title in shared.items()}
    names |= {d.name: d for d in APART if numbers(rows[d.name]).notna().any()}
    lines = []
    for cell, same in _cells(rows):
        for arm in arms:
            of_arm = same[same["arm"] == arm]
            if numbers(of_arm["mean_ticket"]).notna().any():
                means = (
                    _mean(c.scale * spread(of_arm[name]), 4 if name == "kl" else 2)
                    for name, c in names.items()
                )
                lines.append([cell, arm, *means])
    titles = ["cell", "arm", *(column.heading for column in names.values())]
    return Table(titles, lines, texts=2) if lines else None


_COSTS = (
    "Floating point operations of kernels by RigL's convention, as a share of those of "
    "the dense network trained for the same steps; finding masks, the rounds of a "
    "lottery and re-scaling included."
)


def _costs(rows: Frame, arms: Sequence[str]) -> list[Block]:
    """Tables of training and inference, where arms differ in either."""
    blocks: list[Block] = []
    for name in ("training", "inference"):
        share = numbers(rows[f"{name}_flops"]) / numbers(rows[f"dense_{name}_flops"])
        means = share.groupby([rows["cell"], rows["arm"]], sort=False).mean()
        if share.nunique() < 2 or len(arms) < 2:
            continue
        lines = [
            [str(c), *(_share(means.get((c, arm))) for arm in arms)]
            for c, _ in _cells(rows)
        ]
        blocks.append(Table([name, *arms], lines))
    return blocks


def _share(value: Any) -> str:
    return "" if value is None or isnan(value) else f"{value:.3f}"


def _arms(study: Study, rows: Frame) -> Table:
    def text(fields: Mapping[str, str]) -> str:
        return ", ".join(f"{name}={value}" for name, value in fields.items())

    def line(kind: str, one: Cell | Arm) -> list[str]:
        there = (rows[kind] == one.name).any()
        return [kind, one.name, text(one.fields), "" if there else "not run"]

    lines = [line("cell", cell) for cell in study.cells]
    lines += [line("arm", arm) for arm in study.arms]
    return Table(["", "name", "fields", ""], lines, texts=4)


def _draw(
    path: Path, study: Study, compared: Sequence[tuple[str, str, list[Difference]]]
) -> None:
    rows = [max(len(found), 1) for _, _, found in compared]
    height = 0.9 * len(compared) + 0.3 * sum(rows)
    with panels(path, len(compared), height, share_x=True, ratios=rows) as (_, places):
        for place, (arm, base, found) in zip(places, compared, strict=True):
            for i, d in enumerate(found):
                place.plot(d.by_seed, [i] * len(d.by_seed), ".", color="0.6")
                place.errorbar(
                    [d.mean],
                    [i],
                    xerr=[d.half_width],
                    fmt="o",
                    color="black",
                    capsize=3,
                )
            place.axvline(0, color="0.5", linewidth=0.8)
            place.set_yticks(range(len(found)), [shown_name(d.cell) for d in found])
            place.set_ylim(len(found) - 0.5, -0.5)
            place.set_title(shown_name(f"{arm} - {base}"), fontsize=9, loc="left")
        places[-1].set_xlabel(_what(score(study.score)))

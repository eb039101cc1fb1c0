"""Run folders as a run would leave them, with made-up numbers."""

import itertools
import json

import numpy as np

SCORES = ("accuracy", "nll", "ece", "brier", "examples")


def config_of(
    *,
    method="rigl",
    sparsity=0.9,
    sup=True,
    seed=0,
    model="conv",
    data="digits",
    **more,
):
    """A nested configuration; further dotted names with __ for the dot."""
    config = {
        "seed": seed,
        "evaluate": "test",
        "compare": False,
        "data": {"name": data, "batch_size": 64},
        "model": {"name": model, "options": {"features": [16, 16]}},
        "method": {"name": method, "sparsity": sparsity},
        "train": {"epochs": 10},
        "sup": {"enabled": sup, "cycles": 3, "decay": None},
        "report": {"path_points": 11},
    }
    for name, value in more.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def row(network, accuracy, *, total=1000, sparsity=0.9):
    return {
        "network": network,
        "accuracy": accuracy,
        "nll": 2 * (1 - accuracy),
        "ece": 0.3 * (1 - accuracy),
        "brier": 1.2 * (1 - accuracy),
        "examples": 360,
        "active": round((1 - sparsity) * total) if total else 0,
        "total": total,
    }


def layers(count, rng):
    names = [f"stage{i // 4}/conv{i % 4}/kernel" for i in range(count)]
    return [
        {"layer": name, "active": int(rng.integers(10, 500)), "size": 1000}
        for name in names
    ]


def analysis(names, rng):
    count = len(names)
    share = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) * 0.012
    positions = np.linspace(0, 1, 11)
    x, y = np.linspace(-1, 4, 15), np.linspace(-1, 3, 15)
    bowl = 0.05 + 0.02 * ((x[None] - 1.5) ** 2 + (y[:, None] - 0.7) ** 2)
    losses = bowl.tolist()
    losses[0][0] = None
    return {
        "tickets": names,
        "ensemble": {k: v for k, v in row("", 0.955).items() if k in SCORES},
        "disagreement": share.tolist(),
        "kl": (1.3 * share + rng.uniform(0, 0.002, share.shape) * (share > 0)).tolist(),
        "overlap": (1 - 8 * share).tolist(),
        "superposed_overlap": [0.9] * count,
        "paths": [
            {
                "from": a,
                "to": b,
                "positions": positions.tolist(),
                "losses": (
                    0.06 + 0.01 * i + 0.02 * positions * (1 - positions)
                ).tolist(),
                "accuracies": (0.95 - 0.01 * positions).tolist(),
                "barrier": 0.005,
            }
            for i, (a, b) in enumerate(itertools.pairwise(names))
        ],
        "plane": {
            "names": names[-3:],
            "other_names": ["superposed ticket"],
            "x": x.tolist(),
            "y": y.tolist(),
            "losses": losses,
            "corners": [[0, 0], [3, 0], [1.2, 2]],
            "others": [[1.4, 0.7]],
            "heights": [0.1],
        },
    }


COST = {
    "parameters": 123456,
    "active_parameters": 12345,
    "bytes_dense": 493824,
    "bytes_sparse": 66000,
    "inference_flops": 2.3e6,
    "dense_inference_flops": 1.9e7,
    "training_flops": 3.1e12,
    "dense_training_flops": 2.2e13,
    "measured_step_flops": 1.4e9,
}


def events(rng, *, sup=True, run="rigl"):
    found = []
    for step in range(0, 1000):
        loss = float(0.05 + 2 * np.exp(-step / 150) + 0.05 * rng.random())
        rate = 0.1 if step < 500 else 0.01
        found.append(
            {
                **{"run": run, "event": "loss", "phase": "phase 1", "step": step},
                **{"loss": loss, "learning_rate": rate},
            }
        )
    for step in range(100, 1001, 100):
        accuracy = float(0.95 - 0.6 * np.exp(-step / 150))
        found.append(
            {
                **{"run": run, "event": "validation", "phase": "phase 1"},
                **{"step": step, "accuracy": accuracy, "nll": 1 - accuracy},
            }
        )
    changes = [("update", step) for step in range(50, 650, 50)]
    changes += [("explore", step) for step in (700, 800, 900)] if sup else []
    for i, (kind, step) in enumerate(changes):
        found.append(
            {
                **{"run": run, "event": kind, "phase": "phase 1", "step": step},
                **{"overlap": 0.55 + 0.03 * i, "active": 100},
                "ever_active": 0.1 + 0.05 * np.sqrt(i),
            }
        )
    return found


def write_run(path, config, *, accuracy=0.95, full=True, layer_count=5, name=None):
    """A finished run; the comparison runs of it are written by further calls."""
    rng = np.random.default_rng(0)
    sup, sparsity = config["sup"]["enabled"], config["method"]["sparsity"]
    dense = config["method"]["name"] == "dense"
    size = {"total": 0} if dense else {"sparsity": sparsity}
    names = ["phase 1", *(f"ticket {i}" for i in (1, 2, 3))] if sup else []
    rows = [row(n, accuracy - 0.01 + 0.002 * i, **size) for i, n in enumerate(names)]
    rows.append(row("superposed ticket" if sup else "final", accuracy, **size))
    results = {
        "name": name or path.name,
        "evaluated_on": "test",
        "seconds": 12.3,
        "rows": rows,
        "layers": {r["network"]: layers(layer_count, rng) for r in rows},
    }
    if full:
        results["cost"] = COST
        if sup:
            results["analysis"] = analysis(names[1:], rng)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "results.json").write_text(json.dumps(results))
    if full:
        (path / "plan.txt").write_text("plan: rigl, sparsity 0.9\nphase 1: <700> steps")
        lines = map(json.dumps, events(rng, sup=sup, run=results["name"]))
        (path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"run": "cut sh')
    return results

"""What the dashboard and the alert rules in `deploy/monitoring` ask for, and whether it is exported."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml
from prometheus_client.parser import text_string_to_metric_families

DEPLOY = Path(__file__).parents[1] / "deploy"
FOLDER = DEPLOY / "monitoring"
SCALING = DEPLOY / "kubernetes/keda/scaledobject.yaml"
DASHBOARD = FOLDER / "grafana-dashboard.json"
ALERTS = FOLDER / "alerts.yml"
# Prometheus adds these to what it scrapes.
ADDED_LABELS = {"instance", "job"}

Exported = Mapping[str, set[str]]


def exported(*expositions: str) -> Exported:
    """The labels of each series in these answers of ``/metrics``, by its name."""
    labels: dict[str, set[str]] = defaultdict(set)
    for text in expositions:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels[sample.name] |= sample.labels.keys() | ADDED_LABELS
    return labels


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def dashboard_queries() -> dict[str, str]:
    """By panel, with Grafana's variables replaced."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$queue", ".*")
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    }


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def alert_queries() -> dict[str, str]:
    return {rule["alert"]: rule["expr"] for rule in alerts()}


def scaling_queries() -> dict[str, str]:
    """Those by which KEDA counts the workers."""
    scaled = yaml.safe_load(SCALING.read_text())
    triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
    return {f"trigger {i}": metadata["query"] for i, metadata in enumerate(triggers)}


def wrong(query: str, known: Exported) -> Iterator[str]:
    """Series and labels of the query that are not exported. Raises ValueError for what is no PromQL."""
    for names, labels in _selected(promql.parse(query)):
        for name in names:
            if name not in known:
                yield f"{name} is not exported"
            else:
                yield from (f"{name} has no label {label}" for label in labels - known[name])


def _selected(root: Any) -> Iterable[tuple[set[str], set[str]]]:
    """Series that are selected, with the labels that their matchers and the aggregations over them use."""
    found: list[tuple[set[str], set[str]]] = []

    def below(expr: Any) -> set[str]:
        """The names in this expression."""
        names: set[str] = set()

        def visit(part: Any) -> None:
            if isinstance(part, promql.VectorSelector) and part.name:
                names.add(part.name)

        promql.walk(expr, visit)
        return names

    def visit(part: Any) -> None:
        if isinstance(part, promql.VectorSelector):
            found.append(({part.name}, {matcher.name for matcher in part.matchers.matchers}))
        elif isinstance(part, promql.AggregateExpr) and part.modifier is not None:
            found.append((below(part.expr), set(part.modifier.labels)))

    promql.walk(root, visit)
    return found

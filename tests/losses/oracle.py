"""The losses by the formulas of their papers as they stand there, in numbers of 60 digits.

Each takes logits z of the student and v of the teacher, a list of numbers an example, labels and
the hyperparameters, and returns its soft terms: a number an example, or [one] for the batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from typing import Any

Row = Sequence[Decimal]
Rows = Sequence[Row]
Terms = dict[str, list[Decimal]]


def total(values: Iterable[Decimal]) -> Decimal:
    return sum(values, Decimal(0))


def softmax(z: Row, t: Decimal = Decimal(1)) -> Row:
    exps = [((x - max(z)) / t).exp() for x in z]
    return [e / total(exps) for e in exps]


def divergence(p: Row, q: Row) -> Decimal:
    return total(a * (a / b).ln() for a, b in zip(p, q, strict=True) if a)


def reversed_divergence(p: Row, q: Row) -> Decimal:
    return divergence(q, p)


def cross_entropy(p: Row, q: Row) -> Decimal:
    return -total(a * b.ln() for a, b in zip(p, q, strict=True))


def soft(
    value: Callable[..., Decimal],
) -> Callable[..., Terms]:
    """A loss whose soft term is T^2 times a ``value`` of p and q."""

    def terms(z: Rows, v: Rows, labels: Sequence[int], temperature: Decimal, **rest: Any) -> Terms:
        del labels
        t = temperature
        pairs = [(softmax(b, t), softmax(a, t)) for a, b in zip(z, v, strict=True)]
        return {"soft": [t**2 * value(p, q, **rest) for p, q in pairs]}

    return terms


def jensen_shannon(p: Row, q: Row, beta: Decimal) -> Decimal:
    if beta == 0:
        return divergence(p, q)
    if beta == 1:
        return divergence(q, p)
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    own = beta * divergence(p, m) + (1 - beta) * divergence(q, m)
    return own / (beta * (1 - beta))


def standardised(z: Row) -> Row:
    mean = total(z) / len(z)
    deviation = (total((x - mean) ** 2 for x in z) / (len(z) - 1)).sqrt()
    return [(x - mean) / (deviation + Decimal("1e-7")) for x in z]


def standardised_kd(z: Rows, v: Rows, labels: Sequence[int], **rest: Decimal) -> Terms:
    return kd([standardised(x) for x in z], [standardised(x) for x in v], labels, **rest)


def mse(z: Rows, v: Rows, labels: Sequence[int]) -> Terms:
    del labels
    return {
        "soft": [
            total((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
            for a, b in zip(z, v, strict=True)
        ]
    }


def without(z: Row, label: int) -> Row:
    return [x for c, x in enumerate(z) if c != label]


def dkd(z: Rows, v: Rows, labels: Sequence[int], temperature: Decimal) -> Terms:
    found: Terms = {"tckd": [], "nckd": []}
    for a, b, label in zip(z, v, labels, strict=True):
        p, q = softmax(b, temperature), softmax(a, temperature)
        two = [[x[label], total(without(x, label))] for x in (p, q)]
        rest = [softmax(without(x, label), temperature) for x in (b, a)]
        found["tckd"].append(temperature**2 * divergence(*two))
        found["nckd"].append(temperature**2 * divergence(*rest))
    return found


def nkd(z: Rows, v: Rows, labels: Sequence[int], temperature: Decimal) -> Terms:
    found: Terms = {"target": [], "others": []}
    for a, b, label in zip(z, v, labels, strict=True):
        found["target"].append(-softmax(b)[label] * softmax(a)[label].ln())
        rest = [softmax(without(x, label), temperature) for x in (b, a)]
        found["others"].append(temperature**2 * cross_entropy(*rest))
    return found


def wsld(
    z: Rows, v: Rows, labels: Sequence[int], temperature: Decimal, known: Rows | None = None
) -> Terms:
    """The weight has no gradient: it is that of the logits ``known``, if any."""
    values = []
    for a, b, label, own in zip(z, v, labels, known or z, strict=True):
        ratio = -softmax(own)[label].ln() / (-softmax(b)[label].ln() + Decimal("1e-7"))
        p, q = softmax(b, temperature), softmax(a, temperature)
        values.append((1 - (-ratio).exp()) * temperature**2 * cross_entropy(p, q))
    return {"soft": values}


def ttm(z: Rows, v: Rows, labels: Sequence[int], gamma: Decimal, power: int = 0) -> Terms:
    del labels
    values = []
    for a, b in zip(z, v, strict=True):
        powers = [x**gamma for x in softmax(b)]
        soft = divergence([x / total(powers) for x in powers], softmax(a))
        values.append(total(powers) ** power * soft)
    return {"soft": values}


def wttm(z: Rows, v: Rows, labels: Sequence[int], gamma: Decimal) -> Terms:
    return ttm(z, v, labels, gamma, power=1)


def pearson(a: Row, b: Row) -> Decimal:
    """With 1e-8 beside the product of the norms, as in the authors' code."""
    a, b = ([x - total(row) / len(row) for x in row] for row in (a, b))
    norms = [total(x * x for x in row).sqrt() for row in (a, b)]
    return total(x * y for x, y in zip(a, b, strict=True)) / (norms[0] * norms[1] + Decimal("1e-8"))


def dist(z: Rows, v: Rows, labels: Sequence[int], temperature: Decimal) -> Terms:
    del labels
    q, p = ([softmax(x, temperature) for x in rows] for rows in (z, v))
    columns = [list(zip(*rows, strict=True)) for rows in (q, p)]
    found: Terms = {}
    for name, pairs in (("classes", zip(q, p, strict=True)), ("batch", zip(*columns, strict=True))):
        values = [pearson(a, b) for a, b in pairs]
        found[name] = [temperature**2 * (1 - total(values) / len(values))]
    return found


kd = soft(divergence)
reverse_kl = soft(reversed_divergence)
jsd = soft(jensen_shannon)

FORMULAS: dict[str, Callable[..., Terms]] = {
    "kd": kd,
    "standardised_kd": standardised_kd,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "mse": mse,
    "dkd": dkd,
    "nkd": nkd,
    "wsld": wsld,
    "ttm": ttm,
    "wttm": wttm,
    "dist": dist,
}


Found = dict[str, tuple[list[float], list[list[float]]]]


def exactly(
    name: str,
    z: Sequence[Sequence[float]],
    v: Sequence[Sequence[float]],
    labels: Sequence[int],
    options: Mapping[str, float],
    classes: Sequence[int],
) -> Found:
    """The soft terms of a loss, and the gradient of each one's sum by z at some ``classes``."""
    made: dict[str, tuple[list[float], list[list[float]]]] = {}
    parts = [slice(0, len(z))] if name == "dist" else [slice(b, b + 1) for b in range(len(z))]
    with localcontext(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN):
        own, given = ([[Decimal(x) for x in row] for row in of] for of in (z, v))
        numbers = {key: Decimal(x) for key, x in options.items()}
        for part in parts:
            found = _one(name, own[part], given[part], labels[part], numbers, classes)
            for term, (values, slopes) in found.items():
                all_values, all_slopes = made.setdefault(term, ([], []))
                all_values += values
                all_slopes += slopes
    return made


def _one(
    name: str,
    z: Rows,
    v: Rows,
    labels: Sequence[int],
    numbers: Mapping[str, Decimal],
    classes: Sequence[int],
) -> Found:
    known: dict[str, Any] = {"known": z} if name == "wsld" else {}
    step = Decimal("1e-25")

    def terms(rows: Rows) -> Terms:
        return FORMULAS[name](rows, v, labels, **numbers, **known)

    def slope(b: int, c: int) -> dict[str, float]:
        sums = []
        for sign in (1, -1):
            moved = [list(row) for row in z]
            moved[b][c] += sign * step
            sums.append({term: total(values) for term, values in terms(moved).items()})
        return {term: float((sums[0][term] - sums[1][term]) / (2 * step)) for term in sums[0]}

    slopes = [[slope(b, c) for c in classes] for b in range(len(z))]
    return {
        term: ([float(x) for x in values], [[at[term] for at in row] for row in slopes])
        for term, values in terms(z).items()
    }

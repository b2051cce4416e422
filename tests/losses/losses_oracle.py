"""The losses once more, in float64 NumPy with plain loops, written from the papers and the equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from hypothesis import settings

Array = Any

# Fixed examples: a failure on one machine is a failure on all.
FEW = settings(max_examples=12, deadline=None, derandomize=True)
SOME = settings(max_examples=40, deadline=None, derandomize=True)


def f64(x: Array) -> np.ndarray:
    return np.asarray(x, np.float64)


def check_gradient(f: Callable[[jax.Array], jax.Array], x: np.ndarray, least: float = 1e-3) -> None:
    """The gradient of f at x against central differences, every entry of x; call it in x64 mode.

    ``least`` is how large the gradient must be somewhere: comparing zeros would show nothing.
    """
    step = 1e-5

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        offsets = step * jnp.eye(x.size).reshape(x.size, *x.shape)
        numeric = jax.vmap(lambda d: (f(x + d) - f(x - d)) / (2 * step))(offsets)
        return jax.grad(f)(x), numeric.reshape(x.shape)

    exact, numeric = jax.jit(both)(x)
    assert exact.dtype == jnp.float64
    np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-9)
    assert float(jnp.abs(exact).max()) > least


def check_constants(f: Callable[[dict[str, Any]], jax.Array], constants: dict[str, Any]) -> None:
    """No gradient of f reaches any of its constants."""
    grads = jax.jit(jax.grad(f))({name: jnp.asarray(value) for name, value in constants.items()})
    for name, grad in grads.items():
        assert np.all(np.asarray(grad) == 0), name


def all_finite(tree: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def close(actual: dict[str, Array], expected: dict[str, float], rtol: float = 2e-5, atol: float = 2e-5) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(float(actual[name]), value, rtol=rtol, atol=atol, err_msg=name)


def softmax(scores: list[float], tau: float) -> list[float]:
    top = max(scores)
    exps = [math.exp((s - top) / tau) for s in scores]
    return [e / math.fsum(exps) for e in exps]


def auto_tau(scores: list[float]) -> float:
    return max(1.0, (max(scores) - min(scores)) / 2)


def normalized(returns: list[float], how: str, least: float = 0.0) -> list[float]:
    mean = math.fsum(returns) / len(returns)
    centred = [r - mean for r in returns]
    if how == "none":
        return list(returns)
    if how == "center":
        return centred
    if how == "standardize":
        std = math.sqrt(math.fsum(c * c for c in centred) / len(returns))
        return [c / max(std + 1e-8, least) for c in centred]
    if len(returns) == 1:
        return [0.0]
    return [(rank - 1) / (len(returns) - 1) - 0.5 for rank in scipy.stats.rankdata(returns, method="average")]


def spearman(a: list[float], b: list[float]) -> float:
    if len(a) < 2 or len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    return float(scipy.stats.spearmanr(a, b).statistic)


def weight_metrics(w: list[float]) -> tuple[float, float, float]:
    """Effective sample size over K, largest weight, entropy over log K."""
    entropy = 0.0 if len(w) == 1 else -sum(p * math.log(p) for p in w if p > 0) / math.log(len(w))
    return 1 / sum(p * p for p in w) / len(w), max(w), entropy


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def groups(mask: np.ndarray) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Each group's index and its valid members, groups without any left out; mask: (..., K)."""
    for group in np.ndindex(mask.shape[:-1]):
        valid = [k for k in range(mask.shape[-1]) if mask[group][k]]
        if valid:
            yield group, valid


def haepo(
    log_likelihood: Array,
    returns: Array,
    mask: Array,
    *,
    score: str,
    temperature: float | str,
    normalize: str,
    entropy: str,
    kl: str,
    entropy_coef: float,
    kl_coef: float,
    behaviour: Array,
    reference: Array,
    lengths: Array,
    policy_entropy: Array,
    policy_kl: Array,
) -> dict[str, float]:
    L, R, B, F, n = (f64(x) for x in (log_likelihood, returns, behaviour, reference, lengths))
    rows: dict[str, list[float]] = {k: [] for k in ("objective", "entropy", "kl", "ess", "max_weight", "alignment")}

    def scored(x: np.ndarray, g: tuple[int, ...], k: int) -> float:
        return {"likelihood": x[g][k], "mean_likelihood": x[g][k] / n[g][k], "log_ratio": x[g][k] - B[g][k]}[score]

    for g, valid in groups(np.asarray(mask)):
        s = [scored(L, g, k) for k in valid]
        tau = auto_tau(s) if temperature == "auto" else float(temperature)
        w = softmax(s, tau)
        r = [R[g][k] for k in valid]
        ess, largest, spread = weight_metrics(w)
        rows["objective"].append(sum(a * b for a, b in zip(w, normalized(r, normalize), strict=True)))
        rows["ess"].append(ess)
        rows["max_weight"].append(largest)
        rows["alignment"].append(spearman(s, r))
        rows["entropy"].append(spread if entropy == "weights" else float(f64(policy_entropy)[g]))
        w_ref = softmax([scored(F, g, k) for k in valid], tau)
        rows["kl"].append(divergence(w_ref, w) if kl == "weights" else float(f64(policy_kl)[g]))
    out = {name: mean(values) for name, values in rows.items()}
    out["loss"] = -out["objective"] - entropy_coef * out["entropy"] + kl_coef * out["kl"]
    return out


def haepo_prefix(
    log_probs: Array,
    behaviour: Array,
    rewards: Array,
    mask: Array,
    *,
    history_decay: float,
    temperature: float | str,
    entropy: str,
    kl: str,
    entropy_coef: float,
    kl_coef: float,
    reference: Array,
    policy_entropy: Array,
    policy_kl: Array,
) -> dict[str, float]:
    m = np.asarray(mask, bool)
    now, lb, lr, r = (np.where(m, f64(x), 0.0) for x in (log_probs, behaviour, reference, rewards))
    T = m.shape[0]
    rows: dict[str, list[float]] = {k: [] for k in ("objective", "entropy", "kl", "ess", "max_weight", "alignment")}
    for g, valid in groups(m.any(0)):
        alive = int(sum(m[t][g][k] for t in range(T) for k in valid))
        centred = [[r[t][g][k] - mean([r[t][g][j] for j in valid]) for k in valid] for t in range(T)]
        squares = 0.0
        for i, k in enumerate(valid):
            credit = 0.0
            for t in reversed(range(T)):
                credit = centred[t][i] + history_decay * credit
                squares += credit**2 if m[t][g][k] else 0.0
        sigma = math.sqrt(squares / alive)
        s, s_ref = [0.0] * len(valid), [0.0] * len(valid)
        objective, steps = 0.0, []
        for t in range(T):
            s = [history_decay * s[i] + now[t][g][k] - lb[t][g][k] for i, k in enumerate(valid)]
            s_ref = [history_decay * s_ref[i] + lr[t][g][k] - lb[t][g][k] for i, k in enumerate(valid)]
            tau = auto_tau(s) if temperature == "auto" else float(temperature)
            w = softmax(s, tau)
            objective += tau * len(valid) * sum(a * b for a, b in zip(w, centred[t], strict=True))
            if any(m[t][g][k] for k in valid):
                steps.append((*weight_metrics(w), divergence(softmax(s_ref, tau), w)))
        rows["objective"].append(objective / (sigma * alive) if sigma > 0 else 0.0)
        for name, column in zip(("ess", "max_weight", "entropy", "kl"), zip(*steps, strict=True), strict=True):
            rows[name].append(mean(list(column)))
        total = [math.fsum(now[t][g][k] - lb[t][g][k] for t in range(T)) for k in valid]
        rows["alignment"].append(spearman(total, [sum(r[t][g][k] for t in range(T)) for k in valid]))
    out = {name: mean(values) for name, values in rows.items()}
    if entropy == "policy":
        out["entropy"] = mean(list(f64(policy_entropy)[m]))
    if kl == "policy":
        out["kl"] = mean(list(f64(policy_kl)[m]))
    out["loss"] = -out["objective"] - entropy_coef * out["entropy"] + kl_coef * out["kl"]
    return out


def haepo_advantage(
    log_probs: Array,
    behaviour: Array,
    advantages: Array,
    is_first: Array,
    mask: Array,
    *,
    min_advantage_std: float,
    history_decay: float,
    temperature: float,
    entropy_coef: float,
    kl_coef: float,
    policy_entropy: Array,
    policy_kl: Array,
) -> dict[str, float]:
    """Each score as the sum of its own history back to the start of the episode, each credit as a difference."""
    m, first = np.asarray(mask, bool), np.asarray(is_first, bool)
    ratio = np.where(m, f64(log_probs) - f64(behaviour), 0.0)
    live = list(f64(advantages)[m])
    standard = np.zeros(m.shape)
    standard[m] = normalized(live, "standardize", min_advantage_std) if live else []
    T, K, tau = m.shape[0], m.shape[-1], float(temperature)

    def score(t: int, g: tuple[int, ...], k: int) -> float:
        total, weight = 0.0, 1.0
        for u in range(t, -1, -1):
            total += weight * ratio[u][g][k]
            weight *= history_decay
            if first[u][g][k]:
                break
        return total

    def credit(t: int, g: tuple[int, ...], k: int) -> float:
        last = t == T - 1 or first[t + 1][g][k]
        return float(standard[t][g][k]) - (0.0 if last else history_decay * float(standard[t + 1][g][k]))

    objective = 0.0
    rows: list[tuple[float, float, float]] = []
    for t in range(T):
        for g in np.ndindex(m.shape[1:-1]):
            s = [score(t, g, k) for k in range(K)]
            w = softmax(s, tau)
            c = [credit(t, g, k) for k in range(K)]
            objective += tau * K**2 / (K - 1) * sum(w[k] * (c[k] - mean(c)) for k in range(K))
            rows.append((*weight_metrics(w)[:2], spearman(s, c)))
    ess, largest, alignment = (mean(list(column)) for column in zip(*rows, strict=True))
    out = {
        "objective": objective / max(len(live), 1), "entropy": mean(list(f64(policy_entropy)[m])),
        "kl": mean(list(f64(policy_kl)[m])), "ess": ess, "max_weight": largest, "alignment": alignment,
    }  # fmt: skip
    out["loss"] = -out["objective"] - entropy_coef * out["entropy"] + kl_coef * out["kl"]
    return out


def gae(
    rewards: Array, values: Array, bootstrap: Array, terminated: Array, truncated: Array, discount: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Every advantage as its own sum of discounted temporal differences up to the end of its episode; (T, B)."""
    r, v, b = f64(rewards), f64(values), f64(bootstrap)
    advantages = np.zeros_like(r)
    for t, i in np.ndindex(r.shape):
        for u in range(t, r.shape[0]):
            following = 0.0 if terminated[u, i] else b[u, i]
            advantages[t, i] += (discount * lam) ** (u - t) * (r[u, i] + discount * following - v[u, i])
            if terminated[u, i] or truncated[u, i]:
                break
    return advantages, advantages + v


def surrogate(ratio: float, advantage: float, eps: float, high: float | None = None) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - eps), 1 + (eps if high is None else high)) * advantage)


def ppo(
    log_probs: Array,
    behaviour: Array,
    advantages: Array,
    mask: Array,
    *,
    values: Array,
    targets: Array,
    behaviour_values: Array,
    clip_eps: float,
    value_coef: float,
    value_clip_eps: float | None,
    entropy_coef: float,
    kl_coef: float,
    policy_entropy: Array,
    policy_kl: Array,
    normalize_advantages: bool,
    min_advantage_std: float,
) -> dict[str, float]:
    live = np.asarray(mask, bool)
    lp, lb, a, v, y, vb, h = (
        list(f64(x)[live])
        for x in (log_probs, behaviour, advantages, values, targets, behaviour_values, policy_entropy)
    )
    if normalize_advantages and a:
        a = normalized(a, "standardize", min_advantage_std)
    ratios = [math.exp(p - q) for p, q in zip(lp, lb, strict=True)]
    squares = []
    for now, target, before in zip(v, y, vb, strict=True):
        square = (now - target) ** 2
        if value_clip_eps is not None:
            near = before + min(max(now - before, -value_clip_eps), value_clip_eps)
            square = max(square, (near - target) ** 2)
        squares.append(square)
    out = {
        "objective": mean([surrogate(p, q, clip_eps) for p, q in zip(ratios, a, strict=True)]),
        "value_loss": mean(squares) / 2,
        "entropy": mean(h),
        "kl": mean([p - 1 - math.log(p) for p in ratios]),
        "clip_fraction": mean([float(abs(p - 1) > clip_eps) for p in ratios]),
        "explained_variance": 1 - float(np.var(f64(y) - f64(v)) / np.var(y)) if y and np.var(y) > 0 else 0.0,
    }
    penalty = kl_coef * mean(list(f64(policy_kl)[live]))
    out["loss"] = -out["objective"] + value_coef * out["value_loss"] - entropy_coef * out["entropy"] + penalty
    return out


def grpo(
    log_probs: Array,
    behaviour: Array,
    returns: Array,
    mask: Array,
    *,
    reference: Array | None,
    clip_eps: float,
    kl_coef: float,
    entropy_coef: float,
    policy_entropy: Array,
    normalize: str = "standardize",
    average: str = "trajectory",
    max_length: float | None = None,
    ratio: str = "step",
    clip_eps_high: float | None = None,
) -> dict[str, float]:
    m = np.asarray(mask, bool)
    lp, lb, R = f64(log_probs), f64(behaviour), f64(returns)
    high = clip_eps if clip_eps_high is None else clip_eps_high
    objectives, divergences, clipped = [], [], []
    for g, valid in groups(m.any(0)):
        terms, penalties = [], []
        for k, advantage in zip(valid, normalized([R[g][k] for k in valid], normalize), strict=True):
            steps = [t for t in range(m.shape[0]) if m[t][g][k]]
            logs = [lp[t][g][k] - lb[t][g][k] for t in steps]
            ratios = [math.exp(mean(logs))] * len(steps) if ratio == "trajectory" else [math.exp(x) for x in logs]
            clipped += [float(not 1 - clip_eps <= p <= 1 + high) for p in ratios]
            terms.append([surrogate(p, advantage, clip_eps, high) for p in ratios])
            if reference is not None:
                gaps = [f64(reference)[t][g][k] - lp[t][g][k] for t in steps]
                penalties.append([math.exp(d) - d - 1 for d in gaps])
        for rows, found in ((terms, objectives), (penalties, divergences)):
            if average == "step":
                found.append(mean([x for row in rows for x in row]))
            elif average == "constant":
                found.append(mean([sum(row) / (max_length or m.shape[0]) for row in rows]))
            else:
                found.append(mean([mean(row) for row in rows]))
    out = {
        "objective": mean(objectives),
        "kl": mean(divergences),
        "entropy": mean(list(f64(policy_entropy)[m])),
        "clip_fraction": mean(clipped),
    }
    out["loss"] = -out["objective"] + kl_coef * out["kl"] - entropy_coef * out["entropy"]
    return out


def dpo(
    log_likelihood: Array,
    returns: Array,
    mask: Array,
    *,
    reference: Array,
    beta: float,
    entropy_coef: float,
    policy_entropy: Array,
) -> dict[str, float]:
    L, R, F, H = f64(log_likelihood), f64(returns), f64(reference), f64(policy_entropy)
    rows: dict[str, list[float]] = {k: [] for k in ("objective", "accuracy", "margin")}
    pairs, entropies = 0, []
    for g, valid in groups(np.asarray(mask)):
        entropies.append(float(H[g]))
        margins = [
            beta * ((L[g][i] - F[g][i]) - (L[g][j] - F[g][j])) for i in valid for j in valid if R[g][i] > R[g][j]
        ]
        if margins:
            pairs += len(margins)
            rows["objective"].append(mean([-math.log1p(math.exp(-x)) for x in margins]))
            rows["accuracy"].append(mean([float(x > 0) for x in margins]))
            rows["margin"].append(mean(margins))
    out = {name: mean(values) for name, values in rows.items()}
    out |= {"pairs": float(pairs), "entropy": mean(entropies)}
    out["loss"] = -out["objective"] - entropy_coef * out["entropy"] if pairs else 0.0
    return out

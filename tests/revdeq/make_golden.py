"""Writes golden_jax.json: results of the JAX original on a small function in fp64.

    python tests/revdeq/make_golden.py --upstream PATH     # a checkout of sammccallum/reversible-deq (a1bd296)

Needs jax and equinox (the file was made with 0.10.2 and 0.13.8), which the test suite does not need. The file holds the
weights, the inputs and the results.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TINY = 1e-300  # a tolerance that is never reached; with 0 the original makes no step
# beta, N, and whether the iteration starts at z0 instead of 0. The inverse amplifies rounding by (1 - beta)^-2 per
# step: with beta far from 0.5 results can be compared to 1e-12 for a few steps only.
REVERSIBLE = [
    (0.5, 1, False), (0.5, 4, False), (0.5, 4, True), (0.5, 8, False), (0.3, 8, True), (0.8, 2, True), (1.5, 4, False)
]  # fmt: skip


def function() -> dict[str, np.ndarray]:
    """Weights of a contraction f(z, x) = C tanh(A z + B x + b), inputs, and the gradient of the output, 3 samples."""
    rng = np.random.default_rng(0)
    shapes = {"A": (6, 4), "B": (6, 4), "b": (6,), "C": (4, 6), "x": (3, 4), "z0": (3, 4), "cotangent": (3, 4)}
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    for name in ("A", "C"):
        values[name] *= 0.8 / np.linalg.norm(values[name], 2)
    values["z0"] *= np.array([[0.1], [1.0], [10.0]])  # so that samples converge after different numbers of steps
    return values


def compute_cases(jax, eqx, rdeq) -> list[dict]:
    """Results of the original for all settings."""
    jnp, data = jax.numpy, function()
    zeros = np.zeros_like(data["z0"])

    class F(eqx.Module):
        A: jax.Array
        B: jax.Array
        b: jax.Array
        C: jax.Array

        def __call__(self, z, x):
            return self.C @ jnp.tanh(self.A @ z + self.B @ x + self.b)

    def compute(solver, adjoint, tol: float, max_steps: int, z0: np.ndarray) -> dict:
        def loss(arguments):
            f, x = arguments
            each = jax.vmap(lambda z, x: rdeq.solve(f, z, x, solver, adjoint, tol=tol, max_steps=max_steps))
            solution = each(jnp.asarray(z0), x)
            return (solution.z1 * data["cotangent"]).sum(), solution

        f = F(*(jnp.asarray(data[name]) for name in "ABbC"))
        (_, solution), (of_f, of_x) = eqx.filter_value_and_grad(loss, has_aux=True)((f, jnp.asarray(data["x"])))
        return {
            "z": solution.z1.tolist(),
            "steps": solution.steps.tolist(),
            "residual": solution.error.tolist(),
            "gradients": {name: getattr(of_f, name).tolist() for name in "ABbC"} | {"x": of_x.tolist()},
        }

    cases = []
    for beta, n, starts_at_z0 in REVERSIBLE:
        z0 = data["z0"] if starts_at_z0 else zeros
        results = compute(rdeq.Reversible(beta), rdeq.ReversibleAdjoint(), TINY, n, z0)
        cases.append({"adjoint": "reversible", "beta": beta, "N": n, "z0": z0.tolist(), **results})
    results = compute(rdeq.Reversible(0.5), rdeq.ReversibleAdjoint(), 0.05, 20, data["z0"])
    cases.append({"adjoint": "tolerance", "beta": 0.5, "N": 20, "tol": 0.05, "z0": data["z0"].tolist(), **results})
    results = compute(rdeq.Relaxed(0.8), rdeq.ImplicitAdjoint(1e-14, 300), 1e-14, 300, zeros)
    cases.append({"adjoint": "implicit", "beta": 0.8, "N": 300, "tol": 1e-14, "z0": zeros.tolist(), **results})
    results = compute(rdeq.Relaxed(0.5), rdeq.PhantomAdjoint(0.5, 5), TINY, 6, zeros)
    cases.append({"adjoint": "phantom", "beta": 0.5, "N": 6, "z0": zeros.tolist(), **results})
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, required=True, help="folder of the checkout")
    parser.add_argument("--output", type=Path, default=HERE / "golden_jax.json", help="file to write")
    args = parser.parse_args()
    sys.path.insert(0, str(args.upstream))
    import equinox
    import jax
    import reversible_deq

    jax.config.update("jax_enable_x64", True)  # without it jax computes in fp32
    data = {name: array.tolist() for name, array in function().items() if name != "z0"}
    content = data | {"cases": compute_cases(jax, equinox, reversible_deq)}
    args.output.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()

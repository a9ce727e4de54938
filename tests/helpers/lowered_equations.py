"""Equations of a traced program after lowering for one platform, without the branches of other platforms."""
from collections.abc import Iterator

import jax
from jax.extend.core import JaxprEqn

from mlic_jax.kernels.multilinear import traced_derivative


def equations_on(traced, platform: str, inputs=()) -> Iterator[JaxprEqn]:
  """Yield the equations of a jaxpr and of all jaxprs inside it that run on `platform`.

  Where jax.lax.platform_dependent chose, only the branch of `platform` is followed. `inputs` are the values of the
  first variables of the jaxpr where they are known."""
  jaxpr = getattr(traced, "jaxpr", traced)
  known = {variable: value for variable, value in zip(jaxpr.invars, inputs) if value is not None}
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    values = [each.val if hasattr(each, "val") else known.get(each) for each in equation.invars]
    if name == "platform_index":
      platforms = equation.params["platforms"]
      known[equation.outvars[0]] = next(
          (i for i, names in enumerate(platforms) if names is None or platform in names), len(platforms))
    elif name in ("clamp", "convert_element_type") and None not in values:
      known[equation.outvars[0]] = values[len(values) // 2]  # the index is within its bounds
    elif name == "multilinear_derivative":
      yield from equations_on(implementation(equation, platform), platform)
    elif name == "cond" and values[0] is not None:
      yield from equations_on(equation.params["branches"][int(values[0])], platform, values[1:])
    else:
      yield equation
      for parameter in equation.params.values():
        for inner in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
          if hasattr(inner, "eqns"):
            yield from equations_on(inner, platform, values if len(inner_variables(inner)) == len(values) else ())


def implementation(equation: JaxprEqn, platform: str):
  """Return the jaxpr of a multilinear map on `platform`."""
  run = lambda *others: traced_derivative(*others, **equation.params, on_cpu=platform == "cpu")
  return jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(each.aval.shape, each.aval.dtype) for each in equation.invars))


def inner_variables(traced) -> list:
  return getattr(traced, "jaxpr", traced).invars


def named(equations, name: str) -> list[JaxprEqn]:
  """Return the equations of a primitive."""
  return [each for each in equations if each.primitive.name == name]


def kernels(equations) -> set[tuple[int, ...]]:
  """Return (height, width) of the kernels of all convolutions."""
  return {each.invars[1].aval.shape[:2] for each in named(equations, "conv_general_dilated")}


def products(equations) -> set[jax.lax.Precision | None]:
  """Return the precisions of all convolutions and matrix products; None is the default of the backend."""
  chosen = [each.params["precision"] for each in equations
            if each.primitive.name in ("conv_general_dilated", "dot_general")]
  return {one for both in chosen for one in (both if isinstance(both, tuple) else (both,))}

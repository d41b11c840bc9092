"""The tool `calculate`: arithmetic that models get wrong, done exactly. Nothing but numbers can be said in it.

An expression is read as Python's syntax tree and walked; names beyond CONSTANTS, attributes, subscripts and calls
beyond FUNCTIONS have no meaning. Whole numbers stay exact, and are never let grow beyond BITS.
"""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any, Final

from pydantic import Field

from mofang.errors import Invalid
from mofang.server.rooms import Rooms
from mofang.server.tools.base import Own
from mofang.strings import say
from mofang.wire import Request

Number = int | float

CHARS: Final = 1000
"""Of an expression."""
BITS: Final = 10_000
"""Of a whole number on the way: about 3000 digits, which Python still prints."""
AS_WRITTEN: Final = str.maketrans({"×": "*", "÷": "/", "−": "-", "（": "(", "）": ")", "，": ",", "^": "**"})
"""How people and models write what Python writes otherwise."""


class Arguments(Request):
    expression: str = Field(min_length=1, max_length=CHARS)


async def run(asked: Arguments, rooms: Rooms) -> str:
    return str(calculate(asked.expression))


def calculate(expression: str) -> Number:
    """The value of an arithmetic expression. Raises Invalid, and nothing else, where it has none."""
    try:
        return _value(ast.parse(expression.strip().translate(AS_WRITTEN), mode="eval").body)
    except SyntaxError as error:
        raise _fault(error.msg) from error
    except (ArithmeticError, ValueError, TypeError) as error:  # 1/0, sqrt(-1), round(1, 2, 3)
        raise _fault(error) from error
    except (RecursionError, MemoryError) as error:
        raise _fault(say("tools.too_deep")) from error


def _fault(why: object) -> Invalid:
    return Invalid("tools.cannot_calculate", param="expression", why=why)


def _value(node: ast.expr) -> Number:
    read = NODES.get(type(node))
    if read is None:
        raise _fault(say("tools.no_arithmetic", what=ast.unparse(node)[:80]))
    value: Number | complex = read(node)
    if isinstance(value, complex):
        raise _fault(say("tools.not_real"))
    if isinstance(value, float) and not math.isfinite(value):
        raise _fault(say("tools.too_large"))
    if isinstance(value, int) and value.bit_length() > BITS:
        raise _fault(say("tools.too_large"))
    return value


def _constant(node: Any) -> Any:
    if type(node.value) not in (int, float):
        raise _fault(say("tools.no_arithmetic", what=repr(node.value)[:80]))
    return node.value


def _name(node: Any) -> Any:
    if node.id not in CONSTANTS:
        raise _fault(say("tools.unknown_word", word=node.id, known=", ".join((*CONSTANTS, *FUNCTIONS))))
    return CONSTANTS[node.id]


def _unary(node: Any) -> Any:
    operate = UNARY.get(type(node.op))
    if operate is None:
        raise _fault(say("tools.no_arithmetic", what=ast.unparse(node)[:80]))
    return operate(_value(node.operand))


def _binary(node: Any) -> Any:
    operate = BINARY.get(type(node.op))
    if operate is None:
        raise _fault(say("tools.no_arithmetic", what=ast.unparse(node)[:80]))
    return operate(_value(node.left), _value(node.right))


def _call(node: Any) -> Any:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)[:80]
    if name not in FUNCTIONS or node.keywords:
        raise _fault(say("tools.unknown_word", word=name, known=", ".join((*CONSTANTS, *FUNCTIONS))))
    return FUNCTIONS[name](*[_value(argument) for argument in node.args])


def _power(base: Number, exponent: Number) -> Any:
    """What would be too large is not begun."""
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > BITS:
        raise _fault(say("tools.too_large"))
    return base**exponent


def _round(number: Number, digits: int | None = None) -> Any:
    if digits is not None and abs(digits) > BITS:  # rounding to so many zeros begins with that power of ten
        raise _fault(say("tools.too_large"))
    return round(number, digits)


def _factorial(number: int) -> int:
    if isinstance(number, int) and number > BITS // 8:
        raise _fault(say("tools.too_large"))
    return math.factorial(number)


NODES: Final[dict[type[ast.expr], Callable[[Any], Any]]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.Call: _call,
}
UNARY: Final[dict[type[ast.unaryop], Callable[[Any], Any]]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
BINARY: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
CONSTANTS: Final = {"pi": math.pi, "e": math.e}
FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "round": _round,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "degrees": math.degrees,
    "radians": math.radians,
    "hypot": math.hypot,
    "gcd": math.gcd,
    "factorial": _factorial,
}


CALCULATE = Own(Arguments, run)

"""PTX text to statements: variables, functions, instructions and the source line of each.

The text is cut at semicolons; `.loc` lines, labels and braces are recognised where a statement may
begin. Registers that inline assembly declares inside braces are renamed, so that a function has one
flat set of registers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from minibert.kernels.emulator.faults import Location, UnsupportedError
from minibert.kernels.emulator.operands import Operand, parse_operands

__all__ = ["Function", "Instruction", "Parameter", "PtxModule", "Variable", "parse"]

_LOC = re.compile(
    r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)"
    r"(?:\s*,\s*function_name\s+\S+?\s*,\s*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?[^\n]*"
)
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"')
_LABEL = re.compile(r"([\w$%.]+)\s*:(?!:)")
_VARIABLE = re.compile(
    r"^(?:\.\w+\s+)*?\.(?P<space>global|const|shared|local|param)\s+(?:\.align\s+(?P<align>\d+)\s+)?"
    r"(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?\.(?P<type>\w+)\s+(?:\.ptr\s*(?:\.\w+\s*)?(?:\.align\s+\d+\s*)?)?"
    r"(?P<name>[\w$%]+)\s*(?P<array>(?:\[\s*\d*\s*\])*)\s*(?:=\s*(?P<init>.*))?$",
    re.S,
)
_REG = re.compile(r"^\.reg\s*\.(?:v\d\s*\.)?(\w+)\s+(.*)$", re.S)
_HEADER = re.compile(r"\.(entry|func)\b")
_SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the module, of a function or of a call."""

    name: str
    space: str
    size: int
    align: int
    initial: bytes | None = None
    external: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a kernel or function: bytes at an offset of the parameter block."""

    name: str
    type: str
    size: int
    align: int


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
        parts: the opcode cut at its dots.
        guard: register of the guard predicate and whether it is negated, or None.
        operands: as written, in order.
        location: source line.
        text: the PTX, on one line.
    """

    parts: tuple[str, ...]
    guard: tuple[str, bool] | None
    operands: tuple[Operand, ...]
    location: Location
    text: str

    @property
    def opcode(self) -> str:
        """The full spelling."""
        return ".".join(self.parts)


@dataclass(slots=True)
class Function:
    """A kernel (`entry`) or a device function."""

    name: str
    entry: bool
    returns: list[Parameter] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class PtxModule:
    """A whole PTX text."""

    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    target: str = ""


def parse(text: str) -> PtxModule:
    """Parse PTX text.

    Raises:
        UnsupportedError: naming a statement that cannot be read.
    """
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = "\n".join(_without_comment(line) for line in text.splitlines())
    module = PtxModule()
    files = {int(number): name for number, name in _FILE.findall(text)}
    target = re.search(r"\.target\s+(\w+)", text)
    module.target = target.group(1) if target else ""
    text = re.sub(r"^\s*\.(version|target|address_size|file)\b[^\n]*", "", text, flags=re.M)
    text = re.sub(r"\.section\s+[\w.]+\s*\{[^}]*\}", "", text)
    position = 0
    while (position := _skip_blank(text, position)) < len(text):
        position = _top_level(text, position, module, files)
    return module


def _without_comment(line: str) -> str:
    if '"' in line:
        return line
    return line.split("//", 1)[0]


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n;":
        position += 1
    return position


def _top_level(text: str, position: int, module: PtxModule, files: dict[int, str]) -> int:
    """Read one variable or function; return the position after it."""
    location = _LOC.match(text, position)
    if location:
        return location.end()
    ends = [i for i in (text.find(";", position), text.find("{", position)) if i >= 0]
    if not ends:
        raise UnsupportedError(f"PTX cannot be read at {text[position : position + 60]!r}")
    end = min(ends)
    head = text[position:end]
    if _HEADER.search(head):
        function = _header(head)
        if text[end] == ";":  # a declaration
            return end + 1
        close = _closing_brace(text, end)
        _body(text[end + 1 : close], function, files)
        module.functions[function.name] = function
        return close + 1
    if text[end] == "{":  # an initialiser in braces
        end = text.find(";", _closing_brace(text, end))
    if head.lstrip().startswith((".pragma", ".alias")):
        return end + 1
    variable = _variable(text[position:end])
    module.variables[variable.name] = variable
    return end + 1


def _closing_brace(text: str, position: int) -> int:
    depth = 0
    for found in re.compile(r"[{}]").finditer(text, position):
        depth += 1 if found.group() == "{" else -1
        if depth == 0:
            return found.start()
    raise UnsupportedError("PTX ends inside braces")


def _header(head: str) -> Function:
    found = re.search(
        r"\.(?P<kind>entry|func)\s*(?P<returns>\([^)]*\))?\s*(?P<name>[\w$%]+)\s*(?P<params>\([^)]*\))?"
        r"(?P<rest>.*)$",
        head,
        re.S,
    )
    if not found:
        raise UnsupportedError(f"PTX function cannot be read: {head.strip()!r}")
    function = Function(found["name"], found["kind"] == "entry")
    function.returns = _parameters(found["returns"])
    function.parameters = _parameters(found["params"])
    for name, numbers in re.findall(r"\.(\w+)((?:\s*\d+\s*,?)*)", found["rest"]):
        function.directives[name] = tuple(int(n) for n in re.findall(r"\d+", numbers))
    return function


def _parameters(text: str | None) -> list[Parameter]:
    parameters = []
    for piece in (text or "()").strip()[1:-1].split(","):
        if piece.strip():
            variable = _variable(piece.strip())
            kind = re.search(r"\.([usbf]\d+)\b", piece)
            name = "bytes" if "[" in piece else (kind.group(1) if kind else "b64")
            parameters.append(Parameter(variable.name, name, variable.size, variable.align))
    return parameters


def _variable(text: str) -> Variable:
    found = _VARIABLE.match(" ".join(text.split()))
    if not found:
        raise UnsupportedError(f"PTX variable cannot be read: {' '.join(text.split())[:120]!r}")
    size = _SIZES.get(re.sub(r"\D", "", found["type"]), 0)
    if not size:
        raise UnsupportedError(f"PTX variable has type .{found['type']}, which is not known")
    count = 1
    for extent in re.findall(r"\[\s*(\d*)\s*\]", found["array"]):
        count *= int(extent or 0)
    align = int(found["align"] or size)
    initial = _initial(found["init"], size, size * count, found["type"]) if found["init"] else None
    external = ".extern" in text
    return Variable(found["name"], found["space"], size * count, align, initial, external)


def _initial(text: str, size: int, total: int, kind: str) -> bytes:
    values = []
    for item in re.findall(r"[^\s{},]+", text):
        if item[:2].lower() in ("0f", "0d"):
            values.append(int(item[2:], 16))
        elif re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", item):
            values.append(int(item.rstrip("U"), 0))
        else:
            raise UnsupportedError(f"PTX initialiser {item!r} of type .{kind} is not supported")
    data = b"".join((v % (1 << 8 * size)).to_bytes(size, "little") for v in values)
    return data.ljust(total, b"\0")


class _Scopes:
    """Renames registers and labels declared inside braces."""

    def __init__(self) -> None:
        self.stack: list[dict[str, str]] = [{}]
        self.count = 0

    def push(self) -> None:
        self.count += 1
        self.stack.append({})

    def pop(self) -> None:
        self.stack.pop()

    @property
    def renames(self) -> bool:
        """Whether any name here stands for another one."""
        return any(self.stack[1:])

    def declare(self, name: str) -> str:
        unique = name if len(self.stack) == 1 else f"{name}@{self.count}"
        self.stack[-1][name] = unique
        return unique

    def resolve(self, name: str) -> str:
        for names in reversed(self.stack):
            if name in names:
                return names[name]
        return name


def _body(text: str, function: Function, files: dict[int, str]) -> None:
    scopes = _Scopes()
    sites: dict[tuple[int, ...], Location] = {}
    location = Location("", 0)
    position = 0
    while (position := _skip_blank(text, position)) < len(text):
        if found := _LOC.match(text, position):
            numbers = tuple(int(n) for n in found.groups() if n is not None)
            site = sites.get(numbers[3:6])
            if len(numbers) > 3 and site is None:
                site = Location(files.get(numbers[3], "?"), numbers[4])
            location = Location(files.get(numbers[0], "?"), numbers[1], site)
            sites[numbers[:3]] = location
            position = found.end()
        elif text[position] == "{":
            scopes.push()
            inside = text[position + 1 : _closing_brace(text, position)]
            for label in re.findall(r"(?:^|[;{}\n])\s*([\w$%.]+)\s*:(?!:)", inside):
                scopes.declare(label)
            position += 1
        elif text[position] == "}":
            scopes.pop()
            position += 1
        elif found := _LABEL.match(text, position):
            position = _label(text, found, function, scopes)
        else:
            end = text.find(";", position)
            end = len(text) if end < 0 else end
            _statement(" ".join(text[position:end].split()), function, scopes, location)
            position = end + 1


def _label(text: str, found: re.Match[str], function: Function, scopes: _Scopes) -> int:
    """Record a label or a table of branch targets; return the position after it."""
    table = re.compile(r"\s*\.branchtargets\s+([^;]*);").match(text, found.end())
    if table:
        function.tables[found[1]] = tuple(name.strip() for name in table[1].split(","))
        return table.end()
    function.labels[scopes.resolve(found[1])] = len(function.instructions)
    return found.end()


def _statement(text: str, function: Function, scopes: _Scopes, location: Location) -> None:
    if text.startswith((".pragma", ".callprototype", ".calltargets")):
        return
    if declared := _REG.match(text):
        for item in declared[2].split(","):
            name, _, count = item.strip().partition("<")
            if count:
                for number in range(int(count.rstrip("> "))):
                    function.registers[scopes.declare(f"{name}{number}")] = declared[1]
            else:
                function.registers[scopes.declare(name)] = declared[1]
        return
    if text.startswith("."):
        variable = _variable(text)
        name = scopes.declare(variable.name)
        function.variables[name] = Variable(
            name, variable.space, variable.size, variable.align, variable.initial, variable.external
        )
        return
    guard = None
    body = text
    if text.startswith("@"):
        mark, _, body = text.partition(" ")
        guard = (scopes.resolve(mark.lstrip("@!")), "!" in mark)
    opcode, _, rest = body.strip().partition(" ")
    operands = parse_operands(rest, scopes.resolve if scopes.renames else None)
    parts = tuple(part for part in opcode.split(".") if part)
    function.instructions.append(Instruction(parts, guard, operands, location, text))

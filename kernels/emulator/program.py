"""A kernel made ready to run: calls inlined, labels resolved, variables laid out.

There is no call stack: the body of each called function is copied to the place of the call, under
register names of its own, and the parameter variables of the call become local memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.operands import Address, Name, Operand, Pair, Vector
from minibert.kernels.emulator.parse import Function, Instruction, PtxModule, Variable

__all__ = ["GUARD_BYTES", "Program", "link"]

GUARD_BYTES = 128  # left free behind each shared array; a multiple keeps every bank in its place


@dataclass(slots=True)
class Program:
    """One kernel.

    Attributes:
        name: of the kernel.
        instructions: flat.
        labels: label -> index into `instructions`.
        tables: name of a branch table -> labels.
        registers: name -> PTX type.
        parameters: parameter -> (offset, bytes, type).
        parameter_bytes: size of the parameter block.
        local: variable -> offset in a thread's local memory; `local_bytes` in all.
        shared: variable -> (offset, bytes), guards included; `shared_bytes` in all.
        static_bytes: shared memory that the kernel really declares.
        dynamic: names of the `extern __shared__` arrays, which start at `shared_bytes`.
        max_threads: of `__launch_bounds__`, or 0.
        reqntid: block that the kernel demands, or empty.
        slots: register -> slot; see `registers.py`.
    """

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    parameter_bytes: int = 0
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)
    shared_bytes: int = 0
    static_bytes: int = 0
    dynamic: list[str] = field(default_factory=list)
    max_threads: int = 0
    reqntid: tuple[int, ...] = ()
    slots: dict[str, tuple[int, int]] = field(default_factory=dict)


def link(module: PtxModule, name: str) -> Program:
    """Make one kernel ready.

    Raises:
        UnsupportedError: a call that cannot be inlined, by name.
        KeyError: there is no such kernel.
    """
    function = module.functions[name]
    program = Program(name)
    for parameter in function.parameters:
        offset = _up(program.parameter_bytes, parameter.align)
        program.parameters[parameter.name] = (offset, parameter.size, parameter.type)
        program.parameter_bytes = offset + parameter.size
    bounds = function.directives.get("maxntid") or function.directives.get("reqntid") or (0,)
    program.max_threads = bounds[0]
    for extent in bounds[1:]:
        program.max_threads *= extent
    program.reqntid = function.directives.get("reqntid", ())
    _Linker(module, program).emit(function, "", {}, None, (name,))
    return program


def _items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class _Linker:
    """Copies functions into one program."""

    def __init__(self, module: PtxModule, program: Program) -> None:
        self.module, self.program = module, program
        self.calls = 0
        self.dynamic_align = 16

    def emit(
        self,
        function: Function,
        prefix: str,
        aliases: dict[str, str],
        end: str | None,
        stack: tuple[str, ...],
    ) -> None:
        """Append a function's instructions; `end` is where its `ret` goes, or None for a kernel."""
        program = self.program
        names = dict(aliases)
        own = (*function.registers, *function.labels, *function.tables, *function.variables)
        names.update({name: prefix + name for name in own if name not in aliases})
        program.registers.update({prefix + n: t for n, t in function.registers.items()})
        for variable in function.variables.values():
            self.place(replace(variable, name=names[variable.name]))
        for table, labels in function.tables.items():
            program.tables[prefix + table] = tuple(prefix + label for label in labels)
        starts = {index: [] for index in function.labels.values()}  # type: dict[int, list[str]]
        for label, index in function.labels.items():
            starts[index].append(prefix + label)
        for index, instruction in enumerate(function.instructions):
            for label in starts.get(index, ()):
                program.labels[label] = len(program.instructions)
            renamed = self.rename(instruction, names) if prefix else instruction
            if not prefix:
                self.use_all(instruction.operands)
            if renamed.parts[0] == "call":
                self.call(renamed, stack)
            elif renamed.parts[0] == "ret" and end is not None:
                jump = replace(renamed, parts=("bra",), operands=(Name(end),))
                program.instructions.append(jump)
            else:
                program.instructions.append(renamed)
        for label in starts.get(len(function.instructions), ()):
            program.labels[label] = len(program.instructions)

    def rename(self, instruction: Instruction, names: dict[str, str]) -> Instruction:
        def new(operand: Operand) -> Operand:
            if isinstance(operand, Name):
                self.use(operand.name)
                return replace(operand, name=names.get(operand.name, operand.name))
            if isinstance(operand, Address) and operand.base is not None:
                self.use(operand.base)
                return replace(operand, base=names.get(operand.base, operand.base))
            if isinstance(operand, Vector):
                return Vector(tuple(new(item) for item in operand.items))
            if isinstance(operand, Pair):
                first = operand.first and Name(names.get(operand.first.name, operand.first.name))
                second = operand.second and Name(
                    names.get(operand.second.name, operand.second.name)
                )
                return Pair(first, second)
            return operand

        guard = instruction.guard
        if guard is not None:
            guard = (names.get(guard[0], guard[0]), guard[1])
        operands = tuple(new(operand) for operand in instruction.operands)
        return replace(instruction, guard=guard, operands=operands)

    def use_all(self, operands: tuple[Operand, ...]) -> None:
        """Place the shared variables that operands name."""
        for operand in operands:
            if isinstance(operand, Name):
                self.use(operand.name)
            elif isinstance(operand, Address) and operand.base is not None:
                self.use(operand.base)

    def use(self, name: str) -> None:
        """Place a shared variable of the module when the kernel names it."""
        variable = self.module.variables.get(name)
        if variable is not None and variable.space == "shared" and name not in self.program.shared:
            self.place(variable)

    def place(self, variable: Variable) -> None:
        """Lay out a variable of a function or of the module."""
        program = self.program
        if variable.space in ("local", "param"):
            offset = _up(program.local_bytes, max(variable.align, 8))
            program.local[variable.name] = offset
            program.local_bytes = offset + variable.size
        elif variable.space == "shared" and (variable.external or variable.size == 0):
            program.shared[variable.name] = (-1, 0)
            program.dynamic.append(variable.name)
        elif variable.space == "shared":
            program.static_bytes = _up(program.static_bytes, variable.align)
            guards = GUARD_BYTES * sum(1 for _, size in program.shared.values() if size)
            program.shared[variable.name] = (program.static_bytes + guards, variable.size)
            program.static_bytes += variable.size
            program.shared_bytes = program.static_bytes + guards + GUARD_BYTES
        else:
            raise UnsupportedError(
                f"PTX variable {variable.name} in .{variable.space} of a function"
            )

    def call(self, instruction: Instruction, stack: tuple[str, ...]) -> None:
        """Inline a call."""
        operands = list(instruction.operands)
        returns = operands.pop(0) if isinstance(operands[0], Vector) else Vector(())
        target = operands.pop(0)
        passed = operands.pop(0) if operands else Vector(())
        name = target.name if isinstance(target, Name) else "?"
        if name == "__assertfail":
            condition = passed.items[:1] if isinstance(passed, Vector) else ()
            self.program.instructions.append(
                replace(instruction, parts=("trap",), operands=condition)
            )
            return
        if name == "vprintf" and isinstance(passed, Vector):
            self.program.instructions.append(
                replace(instruction, parts=("printf",), operands=(*passed.items, *_items(returns)))
            )
            return
        function = self.module.functions.get(name)
        if function is None or operands:
            raise UnsupportedError(f"PTX call of {name}, which is not in the module")
        if name in stack:
            raise UnsupportedError(f"PTX call of {name} is recursive")
        if instruction.guard is not None:
            raise UnsupportedError(f"PTX call of {name} is predicated")
        assert isinstance(returns, Vector)
        assert isinstance(passed, Vector)
        self.calls += 1
        prefix = f"{name}#{self.calls}:"
        formal = [p.name for p in (*function.returns, *function.parameters)]
        actual = [i.name for i in (*returns.items, *passed.items) if isinstance(i, Name)]
        end = f"{prefix}end"
        aliases = dict(zip(formal, actual, strict=True))
        self.emit(function, prefix, aliases, end, (*stack, name))
        self.program.labels[end] = len(self.program.instructions)

"""A kernel's accesses to global memory, from its PTX: width, argument, and offsets that may overflow 32 bits.

The rule for offsets: a program id is multiplied by a size or a block's length in 64 bits. So a value from %ctaid may
pass through additions, divisions and conversions on its way into an address, but not through a 32-bit product.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# What a register may be derived from, besides pointers by name and 32-bit products by their text.
THREAD = "%tid"
PROGRAM = "%ctaid"
PRODUCT = "product of %ctaid in 64 bits"
NARROW = "32-bit product: "

Facts = frozenset[str]
NOTHING: Facts = frozenset()


@dataclass(frozen=True)
class Access:
    """A load from global memory or a store to it."""

    load: bool
    bytes: int
    pointers: Facts  # the arguments that its address is derived from
    each_thread: bool  # its address depends on the thread; otherwise it accesses one value per program
    narrow: Facts  # 32-bit products of the program id in its address
    place: str  # file:line, if the PTX says so


@dataclass(frozen=True)
class Statement:
    """`opcode target, operands...`, for stores without a target."""

    opcode: str
    targets: tuple[str, ...]
    operands: tuple[str, ...]
    place: str

    @property
    def text(self) -> str:
        """The statement without its targets, and its place in the source."""
        return f"{self.opcode} {', '.join(self.operands)} at {self.place}"


def read_accesses(ptx: str, pointers: Mapping[int, str]) -> list[Access]:
    """All global accesses of a kernel. pointers: names of those parameters, by number, that are pointers."""
    flow = _Flow(list(_statements(ptx)), pointers)
    flow.settle()
    return [_access(flow, statement) for statement in flow.statements if _space(statement.opcode) == "global"]


def _statements(ptx: str) -> Iterator[Statement]:
    place, in_assembly, located = "unknown", False, False
    for line in ptx.splitlines():
        if "inline asm" in line:  # in which each line of assembly counts as a line of the source
            in_assembly, located = "begin" in line, False
        location = re.match(r"\s*\.loc\s.*//\s*(\S+?:\d+)", line)
        if location and not (in_assembly and located):
            place, located = location[1], True
        for part in line.split("//")[0].split(";"):
            if match := re.match(r"\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(.+)", part):
                opcode, rest = match.groups()
                first, *others = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*", rest)
                is_target = first.startswith(("%", "{")) and not opcode.startswith(("st.", "bra", "bar"))
                operands = others if is_target else [first, *others]
                yield Statement(opcode, tuple(_registers(first)) if is_target else (), tuple(operands), place)


def _registers(text: str) -> list[str]:
    return re.findall(r"%\w+", text)


def _space(opcode: str) -> str | None:
    """The memory that a load, a store or an atomic goes to."""
    if opcode.split(".")[0] not in ("ld", "st", "atom", "red", "cp"):
        return None
    space = re.search(r"\.(global|shared|param|const|local)\b", opcode)
    assert space, f"{opcode}: unknown memory space"
    return space[1]


class _Flow:
    """Facts about every register, by a data flow analysis that ignores the order of statements."""

    def __init__(self, statements: list[Statement], pointers: Mapping[int, str]) -> None:
        self.statements = statements
        self.pointers = pointers
        self.facts: dict[str, Facts] = defaultdict(frozenset)
        self.facts |= {THREAD: frozenset([THREAD]), PROGRAM: frozenset([PROGRAM])}
        self.makers: dict[str, list[Statement]] = defaultdict(list)
        for statement in statements:
            for target in statement.targets:
                self.makers[target].append(statement)

    def settle(self) -> None:
        """Pass over the statements until nothing new is found, which takes more than one pass if there are loops."""
        before = -1
        while before != (before := sum(map(len, self.facts.values()))):
            for statement in self.statements:
                facts = self._derived(statement)
                for target in statement.targets:
                    if not target.startswith("%p"):  # a mask is not part of an address
                        self.facts[target] |= facts
                if _space(statement.opcode) == "shared" and not statement.targets:
                    self.facts["shared"] |= facts

    def of(self, text: str) -> Facts:
        """Facts about an operand."""
        return NOTHING.union(*(self.facts[register] for register in _registers(text)))

    def _derived(self, statement: Statement) -> Facts:
        space = _space(statement.opcode)
        if space == "param":
            number = re.search(r"_param_(\d+)", statement.operands[0])
            return frozenset(name for name in [self.pointers.get(int(number[1]))] if name) if number else NOTHING
        facts = NOTHING.union(*map(self.of, statement.operands))
        if space and statement.targets:  # memory holds data; shared memory may hold offsets too
            return (facts & {THREAD}) | (self.facts["shared"] if space == "shared" else NOTHING)
        if self._is_product_of_program(statement):
            wide = ".wide." in statement.opcode or statement.opcode.endswith("64")
            return facts | {PRODUCT if wide else NARROW + statement.text}
        if PRODUCT in facts and re.match(r"cvt\.[su]32\.[su]64", statement.opcode):
            return facts | {NARROW + statement.text}
        return facts

    def _is_product_of_program(self, statement: Statement) -> bool:
        if not re.match(r"(mul|mad|mul24|mad24|shl)\b(?!\.hi).*\.[sub]\d+$", statement.opcode):
            return False
        one, other = statement.operands[:2]
        if self._is_quotient(one, other) or self._is_quotient(other, one):
            return False
        return PROGRAM in self.of(one) | self.of(other)

    def _is_quotient(self, register: str, divisor: str) -> bool:
        """Whether register = x / divisor: then their product is at most x; compilers compute x % divisor with it."""
        makers = self.makers[self._original(register)]
        return bool(makers) and all(
            maker.opcode.startswith("div.") and self._original(maker.operands[1]) == self._original(divisor)
            for maker in makers
        )

    def _original(self, register: str) -> str:
        """The register that this one is a copy of, up to its sign."""
        makers = self.makers[register]
        if len(makers) == 1 and makers[0].opcode.startswith(("mov.", "neg.", "ld.param.")):
            return self._original(makers[0].operands[0])
        return register


def _access(flow: _Flow, statement: Statement) -> Access:
    shape = re.fullmatch(r"(ld|st)\..*?(?:\bv(\d)\.)?[a-z]+(\d+)", statement.opcode)
    assert shape, f"{statement.text}: unknown width"
    facts = flow.of(next(operand for operand in statement.operands if operand.startswith("[")))
    return Access(
        load=shape[1] == "ld",
        bytes=int(shape[2] or 1) * int(shape[3]) // 8,
        pointers=facts & set(flow.pointers.values()),
        each_thread=THREAD in facts,
        narrow=frozenset(fact for fact in facts if fact.startswith(NARROW)),
        place=statement.place,
    )

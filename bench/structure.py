"""Measure the structure of the code: import graph, width of lines, comments, names, functions, and
how far the options of one command travel.

    python bench/structure.py                     # this tree
    python bench/structure.py --tree ../before    # another checkout, side by side
    python bench/structure.py --list              # name the circles, climbs and long functions

Everything comes from the syntax tree; no module is imported.

A file's floor is one more than the highest floor it imports at module level or inside a function;
files that import each other share a floor. An upward import goes from a package to a package that
depends on it. A stop of a parameter is a function of another file that receives a value made from
it; a climb is a stop on a higher floor than the stop before.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import tokenize
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGES = ("trainer", "serving")
ENTRY = {"trainer/pipeline.py": "Pipeline.__init__", "trainer/plan.py": "make_plan"}
"""Where ``fit`` hands its options over, before and after the rebuilding."""
IGNORED_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
PARTICIPLE = re.compile(r"(^|_)(\w{2,}ed|found|told|kept|made|given|done|known|read|taken|shown)$")
NOUNS = {"seed", "feed", "speed", "need", "embed", "red", "breed", "unused"}
"""Words that end like participles and are none, and a declared name of the methods' contract."""


@dataclass
class Module:
    """One file: its syntax tree, tokens, and the project files it imports."""

    path: Path
    name: str
    source: str
    imports: set[str] = field(default_factory=set)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def names(self) -> dict[str, str]:
        """Local name -> dotted name in the project, of everything imported anywhere in the file."""
        table = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    table[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.asname:
                        table[alias.asname] = alias.name
        return table

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
        """Qualified name -> function, methods as ``Class.method``."""
        table = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                table[node.name] = node
            elif isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                        table[f"{node.name}.{inner.name}"] = inner
        return table


def read_tree(root: Path) -> dict[str, Module]:
    """Every module of the packages below ``root`` by dotted name, with its imports resolved."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = Module(path.relative_to(root), name, path.read_text(encoding="utf-8"))
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                dotted = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [d if d in modules else node.module for d in dotted]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                continue
            module.imports |= {t for t in targets if t in modules and t != module.name}
    return modules


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            groups.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return groups


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Height of each node above the nodes that import nothing; a circle shares one floor."""
    groups = circles(graph)
    group_of = {node: k for k, group in enumerate(groups) for node in group}
    heights: dict[int, int] = {}
    for k, group in enumerate(groups):  # Tarjan gives targets before their importers.
        below = {group_of[t] for node in group for t in graph[node]} - {k}
        heights[k] = 1 + max((heights[b] for b in below), default=0)
    return {node: heights[k] for node, k in group_of.items()}


def folder(module: Module) -> str:
    """The folder a module stands in; a file beside the folders is a place of its own."""
    parent = module.path.parent.as_posix()
    return module.path.as_posix() if parent in PACKAGES else parent


def folder_graph(modules: dict[str, Module]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = defaultdict(set)
    for module in modules.values():
        here = folder(module)
        graph[here] |= {folder(modules[t]) for t in module.imports} - {here}
    return dict(graph)


def upward_imports(modules: dict[str, Module]) -> list[str]:
    """Imports between folders that depend on each other, from the one most others stand on."""
    graph = folder_graph(modules)
    group_of = {node: k for k, group in enumerate(circles(graph)) for node in group}
    users = {node: sum(node in targets for targets in graph.values()) for node in graph}
    rows = []
    for module in modules.values():
        for target in module.imports:
            here, there = folder(module), folder(modules[target])
            if here != there and group_of[here] == group_of[there] and users[here] > users[there]:
                rows.append(f"{module.path} imports {modules[target].path}")
    return sorted(rows)


def code_tokens(source: str) -> tuple[int, int, int]:
    """Tokens of code, lines that hold code, lines that hold a comment. Docstrings are no code."""
    docs: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            docs.update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    tokens = 0
    lines: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in IGNORED_TOKENS and token.start[0] not in docs:
            tokens += 1
            lines.update(range(token.start[0], token.end[0] + 1))
    return tokens, len(lines), len(comments)


def variables(tree: ast.Module) -> list[str]:
    """Every name bound by an assignment, a loop, a ``with`` or a parameter."""
    names = [
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]
    names += [n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)]
    return [name for name in names if name not in ("self", "cls", "_")]


def is_participle(name: str) -> bool:
    return bool(PARTICIPLE.search(name)) and name.rpartition("_")[2].lower() not in NOUNS


class Journey:
    """The way of one parameter through the functions of a tree."""

    def __init__(self, modules: dict[str, Module]) -> None:
        self.modules = modules
        self.floor = floors({m.name: m.imports for m in modules.values()})
        self.visits: set[tuple[str, str]] = set()
        self.stops: list[str] = []
        self.climbs: list[str] = []

    def resolve(self, module: Module, call: ast.Call) -> tuple[Module, str] | None:
        """The project function that a call names, as far as the text tells."""
        target = call.func
        if isinstance(target, ast.Name):
            if target.id in module.functions:
                return module, target.id
            if f"{target.id}.__init__" in module.functions:
                return module, f"{target.id}.__init__"
            dotted = module.names.get(target.id, "")
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            if target.value.id == "self":
                found = [q for q in module.functions if q.endswith(f".{target.attr}")]
                return (module, found[0]) if found else None
            dotted = f"{module.names.get(target.value.id, '')}.{target.attr}"
        else:
            return None
        home, _, name = dotted.rpartition(".")
        if home not in self.modules:
            return None
        functions = self.modules[home].functions
        qualified = name if name in functions else f"{name}.__init__"
        return (self.modules[home], qualified) if qualified in functions else None

    def walk(self, module: Module, name: str, parameters: set[str]) -> None:
        if (module.name, name) in self.visits:
            return
        self.visits.add((module.name, name))
        function = module.functions[name]
        carriers = set(parameters)
        for node in ast.walk(function):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.For):
                value = node.iter if isinstance(node, ast.For) else node.value
                if value is not None and self.carried(value, carriers):
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    carriers |= {ast.unparse(t) for t in targets}
        for node in ast.walk(function):
            if not isinstance(node, ast.Call) or (goal := self.resolve(module, node)) is None:
                continue
            callee = goal[0].functions[goal[1]]
            names = [a.arg for a in [*callee.args.posonlyargs, *callee.args.args]]
            names = names[1:] if names[:1] in (["self"], ["cls"]) else names
            taken = {n for n, value in zip(names, node.args) if self.carried(value, carriers)}
            taken |= {k.arg for k in node.keywords if k.arg and self.carried(k.value, carriers)}
            if taken:
                self.enter(module, *goal, taken)

    def enter(self, origin: Module, module: Module, name: str, parameters: set[str]) -> None:
        if module is not origin:
            step = f"{origin.path} -> {module.path}: {name}"
            self.stops.append(step)
            if self.floor[module.name] > self.floor[origin.name]:
                self.climbs.append(step)
        self.walk(module, name, parameters)

    @staticmethod
    def carried(value: ast.expr, carriers: set[str]) -> bool:
        return any(
            ast.unparse(n) in carriers
            for n in ast.walk(value)
            if isinstance(n, ast.Name | ast.Attribute)
        )


def measure(root: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Figures by name, and the places behind those that should be none."""
    modules = read_tree(root)
    rings = [g for g in circles({m.name: m.imports for m in modules.values()}) if len(g) > 1]
    graph = folder_graph(modules)
    pairs = sorted({tuple(sorted((a, b))) for a in graph for b in graph[a] if a in graph[b]})
    upward = upward_imports(modules)
    journey = Journey(modules)
    for file, function in ENTRY.items():
        name = file.removesuffix(".py").replace("/", ".")
        if name in modules:
            journey.walk(modules[name], function, {"options"})
    lengths = {
        f"{m.path}:{name}": (f.end_lineno or f.lineno) - f.lineno + 1
        for m in modules.values()
        for name, f in m.functions.items()
    }
    names = [v for m in modules.values() for v in variables(m.tree)]
    participles = [v for v in names if is_participle(v)]
    figures = {
        "circles of files": str(len(rings)),
        "pairs of folders that import each other": str(len(pairs)),
        "upward imports": str(len(upward)),
        "participle variables": f"{100 * len(participles) / len(names):.1f} %",
        "longest function, lines": str(max(lengths.values())),
        "functions over 40 lines": str(sum(n > 40 for n in lengths.values())),
        "stops of fit's options": str(len(journey.stops)),
        "climbs of fit's options": str(len(journey.climbs)),
    }
    for package in PACKAGES:
        sources = [m.source for m in modules.values() if m.path.parts[0] == package]
        counts = [code_tokens(source) for source in sources]
        lines = [source.count("\n") for source in sources]
        figures |= {
            f"{package}: lines": f"{sum(lines):,}",
            f"{package}: lines a file, median / 90 % / most": (
                f"{statistics.median(lines):.0f} / {sorted(lines)[int(0.9 * len(lines))]}"
                f" / {max(lines)}"
            ),
            f"{package}: tokens a line of code": (
                f"{sum(c[0] for c in counts) / sum(c[1] for c in counts):.1f}"
            ),
            f"{package}: comment lines": f"{100 * sum(c[2] for c in counts) / sum(lines):.1f} %",
        }
    places = {
        "circles": [", ".join(ring) for ring in rings],
        "pairs": [" and ".join(pair) for pair in pairs],
        "upward": upward,
        "climbs": journey.climbs,
        "long functions": [f"{k}: {n}" for k, n in lengths.items() if n > 40],
    }
    return figures, places


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--tree", type=Path, help="another checkout, shown before this one")
    parser.add_argument("--list", action="store_true", help="name the places behind the figures")
    options = parser.parse_args()
    roots = [*([options.tree] if options.tree else []), here]
    results = [measure(root) for root in roots]
    for name in results[-1][0]:
        print(f"{name:50s}", *(f"{figures.get(name, '-'):>22s}" for figures, _ in results))
    if options.list:
        for kind, rows in results[-1][1].items():
            print(f"\n{kind}:", *rows, sep="\n  ")


if __name__ == "__main__":
    main()

"""The process that runs chat templates, so that a hostile one can hurt nothing else.

A chat template is a program from whoever published the model. jinja2's sandbox keeps it away from
files and from Python's inner objects, but not from `{% for i in range(99999) %}` nested three deep
or from a string doubled forty times. So templates run here, in a child with fixed means:

    processor time   an interval timer per request; when it runs out the kernel ends the process
    memory           RLIMIT_AS for the whole process (enforced on Linux)
    output           a count of characters, kept while the template generates

Wall-clock time is not limited, so a slow machine changes no result; a template has nothing to wait
for. In: one JSON request a line on stdin, {"template", "variables"}. Out: one JSON answer a line on
stdout, {"text"} or {"error"}. `convert/template_sandbox.py` is the parent. Run by path with
`python -I`, so it may import nothing of this project.

The environment is transformers': block trimming, `tojson` without HTML escapes, `raise_exception`,
`strftime_now`, loop controls, and the `generation` tag, which marks text and changes none of it.
"""

import datetime
import functools
import json
import resource
import signal
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` renders its body, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The tag as a call block, which is what gives the body its own scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: jinja2.runtime.Macro) -> str:
        return str(caller())


def raise_exception(message: str) -> None:
    """What templates call to refuse a conversation."""
    raise jinja2.TemplateError(message)


def strftime_now(form: str) -> str:
    """The local time in `form`."""
    return datetime.datetime.now().strftime(form)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as `json.dumps` writes it: unicode kept, `<` and `&` kept."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=8)
def compile_template(text: str) -> jinja2.Template:
    """The template, compiled once while it stays in use."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(text)


def render(request: dict[str, Any], max_characters: int) -> dict[str, str]:
    """The answer to one request: the text, or why there is none."""
    pieces: list[str] = []
    length = 0
    try:
        for piece in compile_template(request["template"]).generate(**request["variables"]):
            pieces.append(piece)
            length += len(piece)
            if length > max_characters:
                return {"error": f"it writes more than {max_characters} characters"}
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": "it needs more memory than a template may use"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # whatever a template raises is its answer
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}


def main(cpu_seconds: float, memory_mib: int, max_characters: int) -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        answer = json.dumps(render(json.loads(line), max_characters))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

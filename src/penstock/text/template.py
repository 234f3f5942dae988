"""Chat templates: messages and tools to the prompt text that a model was trained on.

What a template sees is what transformers' `apply_chat_template` shows it: `messages` as dicts (see
`penstock.text.template_messages`), `tools` or None, `documents`, `add_generation_prompt`, the model's special
tokens by role (`bos_token`, …) and the caller's `template_args`.

A model without a template gets ChatML if its vocabulary has `<|im_start|>` and `<|im_end|>`; any other is
refused for chat, because a guessed format answers badly without telling so.

A template that refuses a conversation with a later system message, or with two messages of the user's in
succession, gets it as alternating turns (`template_messages.plain_turns`): agents send both.

Errors are InvalidRequest: a template's own `raise_exception` with its message, everything else with
what went wrong, because both depend on the messages that were sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.call import Message, ToolSpec
from penstock.errors import InvalidRequest
from penstock.text.template_messages import message_dicts, plain_turns, tool_dicts
from penstock.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import jinja2

    from penstock.text.template_trace import Trace

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatTemplate:
    """`source` is Jinja. `tool_source`: the template for calls with tools, where a model has two.

    `special_tokens`: further roles (`unk_token`, …) to their text. Raises InvalidRequest if a source does
    not compile, naming the line.
    """

    def __init__(
        self,
        source: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        *,
        special_tokens: Mapping[str, str] | None = None,
        tool_source: str | None = None,
    ) -> None:
        from penstock.text.template_sandbox import TemplateEnvironment

        environment = self._environment = TemplateEnvironment()
        self._variables: dict[str, frozenset[str]] = {}
        self.source = source
        self._plain = _compile(environment, source)
        self._with_tools = self._plain if tool_source is None else _compile(environment, tool_source)
        self.tool_source = tool_source or source
        given = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = dict(special_tokens or {}) | {k: v for k, v in given.items() if v is not None}

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, model: str) -> ChatTemplate:
        """The model's own template, else ChatML where its vocabulary knows it.

        Raises InvalidRequest naming `model` if there is neither.
        """
        source = tokenizer.chat_template
        if source is None:
            if tokenizer.token_id("<|im_start|>") is None or tokenizer.token_id("<|im_end|>") is None:
                raise InvalidRequest(
                    f"{model} has no chat template and no ChatML tokens; send a completion in its own format",
                    param="model",
                )
            source = CHATML
        tool_source = tokenizer.chat_templates.get("tool_use")
        return cls(source, special_tokens=tokenizer.special_tokens, tool_source=tool_source)

    def variables(self, tools: bool) -> frozenset[str]:
        """What the template (the one for calls with tools) reads of what it is given."""
        from jinja2 import meta

        source = self.tool_source if tools else self.source
        found = self._variables.get(source)
        if found is None:
            tree = self._environment.parse(source)
            found = self._variables[source] = frozenset(meta.find_undeclared_variables(tree))
        return found

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        /,  # so that a template argument of the same name is seen and refused
        **template_args: Any,
    ) -> str:
        """The prompt text. A template writes its own BOS: encode the text without `add_special`."""
        import jinja2

        from penstock.text import template_sandbox

        template, source = self._chosen(tools)
        given = self._variables_for(tools, add_generation_prompt, template_args)
        variables = given | {"messages": message_dicts(messages, source)}
        try:
            return template_sandbox.render(template, variables)
        except jinja2.TemplateError as error:
            plain = plain_turns(messages)
            if plain != list(messages):
                return self.render(plain, tools, add_generation_prompt, **template_args)
            raise InvalidRequest(error.message or type(error).__name__, param="messages") from None
        except Exception as error:  # noqa: BLE001  (a template may raise anything; it is the request's fault)
            reason = f"{type(error).__name__}: {error}"
            raise InvalidRequest(
                f"the chat template can't render these messages: {reason}", param="messages"
            ) from None

    def render_traced(self, trace: Trace, tools: Sequence[ToolSpec] = (), /, **template_args: Any) -> str:
        """`render` of `trace.messages` (see `message_dicts`) with a generation prompt; from a mark of an
        earlier trace only what comes behind it. Raises whatever the template raises: `render` is what says
        why."""
        from penstock.text import template_sandbox

        template, _ = self._chosen(tools)
        variables = self._variables_for(tools, True, template_args) | {"messages": trace.view()}
        return template_sandbox.render(template, variables, trace)

    def _chosen(self, tools: Sequence[ToolSpec]) -> tuple[jinja2.Template, str]:
        return (self._with_tools, self.tool_source) if tools else (self._plain, self.source)

    def _variables_for(
        self, tools: Sequence[ToolSpec], add_generation_prompt: bool, template_args: dict[str, Any]
    ) -> dict[str, Any]:
        """What a template sees beside the messages. Raises InvalidRequest for a reserved name."""
        for name in template_args:
            if name in _RESERVED or name.startswith("_"):
                raise InvalidRequest(
                    f"template_args.{name}: a name of the template's own; leave it out", param=name
                )
        return {
            **self._tokens,
            "documents": None,
            **template_args,
            "tools": tool_dicts(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }


def _compile(environment: Any, source: str) -> jinja2.Template:
    import jinja2

    try:
        return environment.load_source(source)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidRequest(
            f"the model's chat template does not compile: line {error.lineno}: {error.message}", param="model"
        ) from None
    except RecursionError:
        raise InvalidRequest(
            "the model's chat template does not compile: it is nested too deeply", param="model"
        ) from None

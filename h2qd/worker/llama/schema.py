"""A JSON schema as a GBNF grammar, through the converter that comes with llama-cpp-python.

Called by `grammar`; pure.
"""

from llama_cpp.llama_grammar import json_schema_to_gbnf

from h2qd.worker.gbnf import GrammarError
from h2qd.worker.schema import check_schema


def schema_to_gbnf(text: str) -> str:
    """The grammar of the JSON texts that fit the schema. Raises `GrammarError`."""
    check_schema(text)
    try:
        grammar: str = json_schema_to_gbnf(text)
    except Exception as error:  # the converter asserts, and trips over what it does not expect
        reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
        raise GrammarError(f"cannot use the JSON schema: {reason}") from error
    return grammar

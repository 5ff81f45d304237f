"""How models call tools: `parsers.parser_of(template)` gives the worker the parser of a chat template, `parsers.marks`
tells engines which tokens it needs to see; nothing here knows the worker or an engine."""

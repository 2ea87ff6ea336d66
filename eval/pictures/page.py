"""The frame of an HTML page that opens from disk: it holds its style, and links to nothing that it does not name."""

import html

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="{scheme}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{body}
</main>{script}
</body>
</html>
"""


def escaped(text: object) -> str:
    """As text or as an attribute's value in HTML."""
    return html.escape(str(text), quote=True)


def html_page(title: str, style: str, body: str, scheme: str = "light", script: str = "") -> bytes:
    """The page, UTF-8. body: the rest of <header> after the title, and <main> up to its end. scheme: of its colours.
    script: what runs once the page is there; without it the page must still show everything."""
    script = f"\n<script>{script}</script>" if script else ""
    page = _PAGE.format(title=escaped(title), style=style, body=body, scheme=scheme, script=script)
    return page.encode("utf-8", "replace")

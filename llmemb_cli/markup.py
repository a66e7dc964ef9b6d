"""Text out of HTML, as descriptions in catalogues have it."""

from __future__ import annotations

import html
import re

# Elements of HTML, also old ones. Other words in angle brackets, a `vector<int>` in a title, are no markup.
_ELEMENTS = (
    "a abbr acronym address area article aside audio b base basefont bdi bdo big blockquote body br button "
    "canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl dt em "
    "embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr "
    "html i iframe img input ins kbd label legend li link main map mark menu meta meter nav noscript object ol "
    "optgroup option output p param picture pre progress q s samp script search section select small source "
    "span strike strong style sub summary sup svg table tbody td template textarea tfoot th thead time title "
    "tr track tt u ul var video wbr"
)
_NAMES = "|".join(_ELEMENTS.split())
_TAG = re.compile(rf"</?(?:{_NAMES}|o:p)(?:[\s/][^<>]*)?>|<!--[^<>]*-->|<!doctype\b[^<>]*>", re.IGNORECASE)
# Without a blank in their place: they may stand within a word.
_INLINE = re.compile(r"</?(?:a|b|i|u|em|strong|span|font|sup|sub)(?:[\s/][^<>]*)?>", re.IGNORECASE)
_CODE = re.compile(r"</?(?:script|style)\b[^<>]*>", re.IGNORECASE)
# With their semicolon: `Q&A` and `?a=1&copy=2` hold none.
_ENTITY = re.compile(r"&(?:\w{2,31}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")


def without_markup(text: str) -> str:
    """`text` on one line, HTML tags taken out and entities resolved; what is no HTML stays."""
    if "<s" in text or "<S" in text:
        # What stands between the tags of a script or style is no text either.
        text = " ".join(_CODE.split(text)[::2])
    if "&" in text or "<" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found.group()), _TAG.sub(" ", _INLINE.sub("", text)))
    return " ".join(text.split())

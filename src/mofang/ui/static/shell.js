// What Streamlit does not do: its own few English sentences in the reader's language, copying an answer, and a sidebar
// that leaves the page free on a phone once something was chosen in it.
// MOFANG = {words: {zh: {english: translated…}, en: {…}}, language: "zh" | "en"} is written before this file (shell.py).

(() => {
  const english = Object.keys(MOFANG.words.en);
  const known = new Map(); // any language's sentence → its key
  for (const lang of Object.keys(MOFANG.words)) for (const key of english) known.set(MOFANG.words[lang][key], key);
  const ATTRIBUTES = ["aria-label", "title", "placeholder", "data-tooltip"];
  const OURS = ".stMarkdown, .stHtml, textarea, input, code, [data-testid=stChatMessage]";
  const OF_DIAGRAMS = ["png", "fullscreen", "close_fullscreen", "copy_to_clipboard"];
  const isOurs = (element) => element?.closest(OURS) && !element.closest("[data-testid=stMermaidError]");

  const language = () => new URLSearchParams(location.search).get("lang") || MOFANG.language;

  function said(text) {
    const words = MOFANG.words[language()] || MOFANG.words.en;
    const key = known.get(text.trim());
    if (key) return words[key];
    const keys = text.match(/^(?:Shortcut|快捷键) (.+)$/);
    if (keys) return `${words.shortcut} ${keys[1]}`;
    const named = text.match(/^(Remove|移除|Help for|说明：) ?(.+)$/);
    if (named) return `${words[known.get(named[1])]} ${named[2]}`;
    const about = text.match(/^([^:：]+)[:：] ?(.+)$/); // a button of a diagram: "Fullscreen: Diagram"
    if (about && OF_DIAGRAMS.includes(known.get(about[1]))) return `${words[known.get(about[1])]}: ${about[2]}`;
    const large = text.match(/^File is too large\. Maximum size is (\d+) bytes\.$/);
    if (large) return words.too_large.replace("{n}", `${Math.floor(large[1] / 1e6)} MB`);
    const limit = text.match(/^(\d[\d.,]*\s?[KMGT]?B) per file(.*)$/) || text.match(/^每个文件最多 (\d[\d.,]*\s?[KMGT]?B)(.*)$/);
    return limit ? words.per_file.replace("{n}", limit[1]) + limit[2] : undefined;
  }

  function settle(node) {
    if (node.nodeType === Node.TEXT_NODE) {
      if (!node.nodeValue.trim() || isOurs(node.parentElement)) return;
      const text = said(node.nodeValue);
      if (text !== undefined && text !== node.nodeValue) node.nodeValue = text;
      return;
    }
    if (node.nodeType !== Node.ELEMENT_NODE) return;
    for (const name of ATTRIBUTES) {
      const value = node.getAttribute(name);
      const text = value && said(value);
      if (text && text !== value) node.setAttribute(name, text);
    }
    for (const child of node.childNodes) settle(child);
  }

  const observer = new MutationObserver((changes) => {
    document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
    for (const change of changes) {
      if (change.type === "childList") change.addedNodes.forEach(settle);
      else settle(change.target);
    }
  });
  observer.observe(document.documentElement, {
    subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ATTRIBUTES,
  });
  settle(document.documentElement); // on a busy machine Streamlit may have drawn before this script came

  const CHOICES = "[data-testid=stPageLink-NavLink], [class*=st-key-open_] button, .st-key-new_chat button";
  document.addEventListener("click", (event) => {
    if (innerWidth > 768 || !event.target.closest?.("[data-testid=stSidebar]") || !event.target.closest(CHOICES)) return;
    setTimeout(() => document.querySelector("[data-testid=stSidebarCollapseButton] button")?.click(), 150);
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.(".mf-copy");
    if (!button) return;
    const text = button.parentElement.querySelector(".mf-raw")?.textContent ?? "";
    await navigator.clipboard.writeText(text);
    const label = button.textContent;
    button.textContent = MOFANG.words[language()].copied;
    setTimeout(() => { button.textContent = label; }, 1200);
  });
})();

// Runs in a page: its visible text, with what can be clicked or filled in numbered. The number is kept as an attribute,
// by which the tools find the element again.
(most) => {
  const NUMBER = "data-aworld";
  for (const old of document.querySelectorAll(`[${NUMBER}]`)) old.removeAttribute(NUMBER);
  const silent = new Set(["SCRIPT", "STYLE", "NOSCRIPT", "TEMPLATE", "IFRAME", "OBJECT", "CANVAS"]);
  const inline = new Set(["inline", "inline-block", "inline-flex", "contents", "none"]);
  const flat = (text) => (text || "").replace(/\s+/g, " ").trim();
  const out = [];
  let size = 0, count = 0;
  const put = (text) => { out.push(text); size += text.length; };

  const field = (element) => {
    const kind = element.tagName === "INPUT" ? element.type : element.tagName.toLowerCase();
    const label = flat(element.labels?.[0]?.textContent || element.getAttribute("aria-label") || element.placeholder || element.name);
    const parts = [kind, label && JSON.stringify(label)];
    if (kind === "checkbox" || kind === "radio") parts.push(element.checked ? "checked" : "not checked");
    else if (kind === "select") {
      parts.push(`chosen ${JSON.stringify(flat(element.selectedOptions[0]?.textContent))}`);
      parts.push(`of ${JSON.stringify([...element.options].slice(0, 30).map((option) => flat(option.textContent)))}`);
    } else if (element.value && kind !== "password") parts.push(`= ${JSON.stringify(element.value.slice(0, 200))}`);
    return parts.filter(Boolean).join(" ");
  };

  const visit = (element) => {
    if (size > most || silent.has(element.tagName) || !element.checkVisibility()) return;
    const tag = element.tagName;
    const isField = tag === "INPUT" || tag === "TEXTAREA" || tag === "SELECT";
    const isButton = tag === "BUTTON" || tag === "SUMMARY" || element.getAttribute("role") === "button" || element.onclick;
    const isLink = tag === "A" && element.hasAttribute("href");
    const block = !inline.has(getComputedStyle(element).display);
    if (block) put("\n");
    if (/^H[1-6]$/.test(tag)) put("#".repeat(Number(tag[1])) + " ");
    if (tag === "LI") put("- ");
    if (tag === "TD" || tag === "TH") put("| ");
    if (tag === "IMG" && element.alt) put(`[image: ${flat(element.alt)}]`);
    if (isField) {
      if (element.type !== "hidden") {
        element.setAttribute(NUMBER, ++count);
        const button = ["submit", "button", "reset", "image"].includes(element.type);
        put(button ? `[${count}: button ${JSON.stringify(element.value || element.type)}] ` : `[${count}: ${field(element)}] `);
      }
    } else {
      if (isLink || isButton) {
        element.setAttribute(NUMBER, ++count);
        put(`[${count}${isButton && !isLink ? ": button" : ""}] `);
      }
      for (const child of (element.shadowRoot || element).childNodes) {
        if (child.nodeType === Node.TEXT_NODE) put(child.textContent.replace(/\s+/g, " "));
        else if (child.nodeType === Node.ELEMENT_NODE) visit(child);
      }
      if (isLink || isButton) put(" ");
    }
    if (block) put("\n");
  };

  if (document.body) visit(document.body);
  const text = out.join("").replace(/[ \t]+/g, " ").replace(/ ?\n ?/g, "\n").replace(/\n{3,}/g, "\n\n").trim();
  return { title: flat(document.title).slice(0, 300), text: text.slice(0, most) };
}

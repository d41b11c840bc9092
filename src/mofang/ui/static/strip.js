// Tokens as buttons in a line of text: a click, or Enter on the one that the arrow keys lead to, tells its number.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".mf-strip");
  const before = [...root.querySelectorAll("button")];
  const held = before.indexOf(document.activeElement);
  root.setAttribute("aria-label", data.label);
  const parts = [];
  if (data.lead) {
    const lead = document.createElement("span");
    lead.className = "mf-lead";
    lead.textContent = data.lead;
    parts.push(lead);
  }
  const buttons = data.tokens.map((token, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = `mf-token s${token.shade}`;
    button.style.setProperty("--p", token.p);
    button.textContent = token.text;
    button.title = token.title;
    button.setAttribute("aria-label", token.title);
    button.setAttribute("aria-pressed", String(number === data.chosen));
    button.onclick = () => setTriggerValue("chosen", number);
    parts.push(button);
    for (let n = 0; n < token.breaks; n++) parts.push(document.createElement("br"));
    return button;
  });
  const reach = (number) => buttons.forEach((button, other) => (button.tabIndex = other === number ? 0 : -1));
  reach(Math.max(0, held >= 0 ? held : data.chosen ?? 0));
  root.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const here = buttons.indexOf(document.activeElement);
    if (here < 0 || !(step || event.key === "Home" || event.key === "End")) return;
    event.preventDefault();
    const next = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : here + step;
    const there = Math.min(buttons.length - 1, Math.max(0, next));
    reach(there);
    buttons[there].focus();
  };
  root.replaceChildren(...parts);
  if (held >= 0 && buttons[held]) buttons[held].focus();
}

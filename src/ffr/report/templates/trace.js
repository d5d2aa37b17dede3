"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, node = document) => Array.from(node.querySelectorAll(selector));
  const groups = all("article.group");
  const items = all("nav .item");
  const filter = document.getElementById("filter");
  const help = document.getElementById("help");
  let current = 0;

  const visible = () => items.map((item, i) => (item.hidden ? -1 : i)).filter((i) => i >= 0);

  function showSlot(group, number, quiet) {
    const slots = all(".slot", group);
    const wanted = Math.min(Math.max(number, 1), slots.length);
    slots.forEach((slot) => slot.classList.toggle("on", Number(slot.dataset.slot) === wanted));
    all(".dot", group).forEach((dot) => {
      dot.setAttribute("aria-pressed", String(Number(dot.dataset.slot) === wanted));
    });
    all(".strip", group).forEach((strip) => {
      strip.classList.toggle("on", strip.dataset.slots.split(" ").includes(String(wanted)));
    });
    group.dataset.current = String(wanted);
    if (!quiet) history.replaceState(null, "", "#q" + group.dataset.group + "/r" + wanted);
  }

  function showGroup(index, slot, quiet) {
    if (!groups.length) return;
    current = Math.min(Math.max(index, 0), groups.length - 1);
    groups.forEach((group, i) => group.classList.toggle("on", i === current));
    items.forEach((item, i) => {
      if (i === current) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    });
    const list = document.getElementById("list");
    const item = items[current];
    if (item.offsetTop < list.scrollTop || item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = item.offsetTop - list.clientHeight / 3;
    }
    const group = groups[current];
    showSlot(group, slot || Number(group.dataset.current || group.dataset.start), quiet);
  }

  function move(by) {
    const order = visible();
    if (!order.length) return;
    const at = order.indexOf(current);
    const next = at < 0 ? 0 : Math.min(Math.max(at + by, 0), order.length - 1);
    showGroup(order[next]);
    groups[current].scrollIntoView({ block: "nearest" });
  }

  function fromHash() {
    const match = /^#q(\d+)(?:\/r(\d+))?$/.exec(location.hash);
    if (match) showGroup(Number(match[1]) - 1, Number(match[2] || 0), true);
    return Boolean(match);
  }

  function theme() {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  }

  function applyFilter() {
    const story = filter.value;
    items.forEach((item) => {
      item.hidden = story !== "" && !item.dataset.stories.split("|").includes(story);
    });
    const order = visible();
    if (order.length && !order.includes(current)) showGroup(order[0]);
  }

  items.forEach((item, i) => item.addEventListener("click", () => showGroup(i)));
  groups.forEach((group) => {
    all(".dot", group).forEach((dot) => {
      dot.addEventListener("click", () => showSlot(group, Number(dot.dataset.slot)));
    });
  });
  filter.addEventListener("change", applyFilter);
  document.getElementById("theme").addEventListener("click", theme);
  document.getElementById("keys").addEventListener("click", () => help.showModal());
  window.addEventListener("hashchange", fromHash);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const slot = groups.length ? Number(groups[current].dataset.current) : 0;
    if (event.key === "?") {
      if (help.open) help.close();
      else help.showModal();
    } else if (help.open) return;
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "l") showSlot(groups[current], slot + 1);
    else if (event.key === "h") showSlot(groups[current], slot - 1);
    else if (event.key === "t") theme();
    else if (event.key === "/") filter.focus();
    else if (/^[1-9]$/.test(event.key)) showSlot(groups[current], Number(event.key));
    else return;
    event.preventDefault();
  });
  if (!fromHash()) showGroup(0, 0, true);
})();

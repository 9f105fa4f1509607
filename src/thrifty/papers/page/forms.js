"use strict";
// Papers in the forms that other programs read: what `references.py` writes.
const Forms = (() => {
  const COLUMNS = ["id", "version", "published", "title", "authors", "name", "kind", "domain", "module", "fit", "status", "address"];

  // `& % # _` escaped where the authors have not, outside mathematics.
  function tex(text) {
    const pieces = text.split(/(?<!\\)(\$[^$]*\$)/);
    return pieces.map((piece, number) => (number % 2 ? piece : piece.replace(/(?<!\\)([&%#_])/g, "\\$1"))).join("");
  }

  function entry(paper) {
    const fields = {
      title: `{${tex(paper.title)}}`,
      author: paper.authors.map(tex).join(" and "),
      year: String(Number(paper.published.slice(0, 4))),
      eprint: paper.id,
      archivePrefix: "arXiv",
      ...(paper.categories ? { primaryClass: paper.categories[0] } : {}),
      url: paper.address,
    };
    const lines = Object.entries(fields).map(([name, value]) => `  ${name} = {${value}}`);
    return `@misc{${paper.id.replace("/", "_")},\n${lines.join(",\n")}\n}\n`;
  }

  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

  function row(paper) {
    const values = { ...paper, authors: paper.authors.join("; "), status: paper.status.word };
    return COLUMNS.map((name) => cell(String(values[name] ?? ""))).join(",");
  }

  // A text that every Markdown shows as it is.
  function escaped(text) {
    const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", $: "&#36;", "|": "&#124;", "~": "&#126;" };
    return text.replace(/[&<>$|~]/g, (sign) => entities[sign]).replace(/(?<!&)([\\`*_[\]#])/g, "\\$1");
  }

  const shortAuthors = (paper) => paper.authors.slice(0, 3).join(", ") + (paper.authors.length > 3 ? " et al." : "");

  const line = (paper) => `- [${escaped(paper.title)}](${paper.address}), ${escaped(shortAuthors(paper))}, ${paper.published}\n`;

  // By name: the ending of a file, its type, and the text of many papers.
  const forms = {
    Markdown: { ending: "md", type: "text/markdown", write: (papers) => papers.map(line).join("") },
    BibTeX: { ending: "bib", type: "application/x-bibtex", write: (papers) => papers.map(entry).join("\n") },
    JSON: { ending: "json", type: "application/json", write: (papers) => JSON.stringify(papers, null, 2) + "\n" },
    CSV: { ending: "csv", type: "text/csv", write: (papers) => [COLUMNS.join(","), ...papers.map(row)].join("\r\n") + "\r\n" },
  };
  return { forms, shortAuthors };
})();

// What is kept in this browser. Where it may keep nothing, the page works all the same.

export function kept(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`fader-${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(`fader-${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// Hand a text to the person as a file.
export function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// The end of the output of a job's runners, in a dialog.

import { askText } from "./api.js";
import { asked } from "./dialog.js";
import { foreign, h } from "./dom.js";
import { base, wanted } from "./words.js";

/** Show the log of a job until the dialog is closed. */
export async function showLog(job) {
  const text = await askText(`/v1/jobs/${job.id}/log`);
  return asked(["Log of ", foreign(base(job.model)), ` ${wanted(job)}`],
    [h("pre", { class: "output", tabindex: "0", "aria-label": "Log" }, text || "The log is empty.")]);
}

# The static pages: a result like any other, and a copy under a plain name for people and for Snakemake's report.
rule report:
    input:
        JOBS["report"].declared_inputs,
    output:
        manifest=JOBS["report"].manifests,
        pages=report(
            directory(REPORT_FOLDER),
            htmlindex="index.html",
            category="1 Overview",
            labels={"page": "all runs, samplers and baselines"},
            caption="../workflow/report/pages.rst",
        ),
    log:
        PLAN.places.log("report"),
    localrule: REQUESTS.runs_here(JOBS["report"])
    conda:
        "../envs/flowkit.yaml"
    threads: REQUESTS.threads(JOBS["report"])
    resources:
        **REQUESTS.of(JOBS["report"]),
    params:
        *JOBS["report"].tracked,
        stage="report",
        spec=spec_of(JOBS["report"]),
    message:
        "report"
    shell:
        COMMAND

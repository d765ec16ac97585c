# The static pages: a result like any other, and a copy under a plain name for people and for Snakemake's report.
localrules:
    report,


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
    conda:
        "../envs/flowkit.yaml"
    threads: JOBS["report"].threads
    resources:
        mem_mb=JOBS["report"].memory_mb,
        runtime=JOBS["report"].runtime_minutes,
    params:
        *JOBS["report"].tracked,
        stage="report",
        spec=spec_of(JOBS["report"]),
    message:
        "report"
    shell:
        COMMAND

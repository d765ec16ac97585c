# Pages of runs, one rule per trained run and one for all baselines; and the report that puts them together: a result
# like any other, and copies under plain names for people and for Snakemake's report.

for job in jobs_of("page"):

    rule:
        name:
            job.name
        input:
            job.declared_inputs,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        localrule: REQUESTS.runs_here(job)
        conda:
            "../envs/flowkit.yaml"
        threads: REQUESTS.threads(job)
        resources:
            **REQUESTS.of(job),
        params:
            *job.tracked,
            stage=job.spec.stage,
            spec=spec_of(job),
        message:
            job.name
        shell:
            COMMAND


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
        figures=report(
            directory(f"{KEY_FIGURES_FOLDER}/figures"),
            patterns=["{run}/{figure}.svg"],
            category="2 Key figures",
            subcategory="{run}",
            labels={"run": "{run}", "figure": "{figure}"},
            caption="../workflow/report/figures.rst",
        ),
        table=report(
            f"{KEY_FIGURES_FOLDER}/summary.csv",
            category="3 Tables",
            labels={"table": "every metric of every run and sampler"},
            caption="../workflow/report/tables.rst",
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

# Training, one rule per run. Where it is submitted as a job of its own, the rule is the small process that waits for it,
# so it runs where Snakemake runs: a rule on a compute node would hold a GPU while it waits.

for job in jobs_of("train"):

    rule:
        name:
            job.name
        input:
            job.declared_inputs,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        priority: job.priority
        retries: REQUESTS.retries(job)
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
            jobs=jobs_of_run(job),
        message:
            job.name
        shell:
            TRAIN_COMMAND

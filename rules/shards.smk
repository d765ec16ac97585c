# Source data: fetches tars and archives, draws the demo images, makes tars of COCO, takes stock of a folder of tars.

for job in jobs_of("fetch", "shards"):

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

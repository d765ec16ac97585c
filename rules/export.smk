# Tokens in the forms that models built on CLIP ViT-L/14 take, one rule per exported run.

for job in jobs_of("export"):

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

package migrate

import (
	"fmt"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// checkLabels says why a server with the importer's limits would refuse a series.
func (im *Importer) checkLabels(lset labels.Labels) error {
	l := &im.o.Limits
	if l.MaxLabels > 0 && lset.Len() > l.MaxLabels {
		return fmt.Errorf("it has %d labels, more than --ingest.max-labels=%d", lset.Len(), l.MaxLabels)
	}
	if lset.Get(model.MetricNameLabel) == "" {
		return fmt.Errorf("it has no metric name")
	}
	if name, twice := lset.HasDuplicateLabelNames(); twice {
		return fmt.Errorf("it has the label %q twice", name)
	}
	return lset.Validate(func(p labels.Label) error {
		switch {
		case p.Name == "" || !utf8.ValidString(p.Name):
			return fmt.Errorf("%q is no name of a label", p.Name)
		case !utf8.ValidString(p.Value):
			return fmt.Errorf("the value of the label %q is not UTF-8", p.Name)
		case l.MaxLabelName > 0 && len(p.Name) > l.MaxLabelName:
			return fmt.Errorf("the name of the label %q has more than --ingest.max-label-name-length=%d bytes", p.Name, l.MaxLabelName)
		case l.MaxLabelValue > 0 && len(p.Value) > l.MaxLabelValue:
			return fmt.Errorf("the value of the label %q has %d bytes, more than --ingest.max-label-value-length=%d", p.Name, len(p.Value), l.MaxLabelValue)
		}
		return nil
	})
}

// limited identifies what the limits let pass of a source of which they do not let pass everything: under higher limits, the source
// is to be imported again.
func (im *Importer) limited(source identity) identity {
	l := &im.o.Limits
	return identify("within limits", string(source[:]), fmt.Sprint(l.MaxLabels), fmt.Sprint(l.MaxLabelName), fmt.Sprint(l.MaxLabelValue))
}

// accept tells whether a series is to be imported; where it may not be passed over, an error says why not.
func (im *Importer) accept(lset labels.Labels) (bool, error) {
	err := im.checkLabels(lset)
	if err == nil {
		return true, nil
	}
	if im.o.SkipInvalid {
		return false, nil
	}
	return false, fmt.Errorf("series %s cannot be imported (--skip-invalid passes over such): %w", lset, err)
}
